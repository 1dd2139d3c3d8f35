"""The test kit for sagas of your own: ``from evosaga.testing import torture, given, run``."""
