"""Embedded servers for development and tests: Postgres, Valkey and a simulated Evolution."""
