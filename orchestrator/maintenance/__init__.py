"""Before and after a new release: definitions against open sagas, status rows from the log."""
