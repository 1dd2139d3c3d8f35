"""How each integration is connected, looked at in turn."""
