"""The boundary to an Evolution API server: its client, and what its answers mean."""
