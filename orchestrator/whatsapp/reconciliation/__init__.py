"""Keeping the stores true once the sagas are over: look, compare, repair, and watch health."""
