"""Verbs over HTTP: with an address and a key, and neither a database nor a secret at hand."""
