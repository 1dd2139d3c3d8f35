"""A matrix of cases of one law: some run in ``make test``, all in ``make chaos``, by ``long``."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest


def sampled(
    cases: Iterable[Any], *, keep: Collection[Any], id: Callable[[Any], str] | None = None
) -> list[Any]:
    """For ``parametrize`` and ``params``: the cases, of which all but those of `keep` are long.

    A tuple is one case of several parameters. `id` names a case; without it pytest does.
    Raises ``ValueError`` if `keep` names what is no case, so that no renaming empties the sample.
    """
    cases = list(cases)
    if unknown := [one for one in keep if one not in cases]:
        raise ValueError(f"no such cases: {unknown}")
    return [
        pytest.param(
            *(one if isinstance(one, tuple) else (one,)),
            marks=[] if one in keep else pytest.mark.long,
            id=id(one) if id else None,
        )
        for one in cases
    ]
