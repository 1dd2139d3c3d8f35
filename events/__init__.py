"""Ground floor: what happened, the log that keeps it and the streams that tell it."""
