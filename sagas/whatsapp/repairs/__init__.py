"""Sagas that mend one place after the stores have drifted apart."""
