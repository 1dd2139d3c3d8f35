"""An integration once it is there: listed, looked at, paired with a phone."""
