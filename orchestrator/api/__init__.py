"""The HTTP API: FastAPI on the same command handler and queries as the stream and the CLI."""
