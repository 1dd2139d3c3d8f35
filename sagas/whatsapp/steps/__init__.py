"""The steps that sagas are made of, one module an outside system."""
