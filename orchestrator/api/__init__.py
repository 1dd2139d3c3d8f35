"""The HTTP API: FastAPI over the same gate, queries and rules that the stream and the CLI use."""
