"""Settings, API keys and how the log is written."""
