"""The engine: decides what a saga does next, does it, and records it."""
