"""WhatsApp integrations: what is made and removed on Evolution, in Postgres and in Redis."""
