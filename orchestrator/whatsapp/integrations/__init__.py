"""Integrations that exist: list them, observe their connection, pair a phone."""
