"""The hotel of the tutorial, with its worker, for every example."""

from tests.fundamentals.test_your_first_saga import hotel as hotel
