"""An API with keys, as the tests of the API have it."""

from tests.api.conftest import address_, operator, parts, settings

__all__ = ["address_", "operator", "parts", "settings"]
