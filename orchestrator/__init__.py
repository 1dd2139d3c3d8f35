"""Top floor: how sagas are run."""
