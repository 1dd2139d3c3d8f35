"""Evolution's webhooks: taken in and stored at once, then understood as hints and applied."""
