"""Services around WhatsApp integrations that are no sagas."""
