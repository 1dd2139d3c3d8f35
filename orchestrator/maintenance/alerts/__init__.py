"""Alerts: found by one leader, told to receivers outside until they have taken them."""
