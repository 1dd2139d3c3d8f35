"""What older releases stored, in the words of this one.

Stored events never change, so what a release adds has to be read into what is there already. A
field with a default in ``evosaga.events.model`` does that for most. An upcast is for the rest:
where the shape of something has changed, or where what its absence meant depends on the other
fields.

Each is a pure function from the stored data of one type of event to data of today's shape. It is
applied wherever stored events are read, makes no difference to data of today's shape, and is never
edited or removed: the event that needs it is kept for ever. So it is written in literals, and what
they meant stays so whatever becomes of the code around. A type that no release has ever written is
none of its business: that is refused by the model, and its saga is set aside.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

Upcast: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def upcast(type_: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The data as this release would have stored it. What was read is not changed."""
    for one in UPCASTS.get(type_, ()):
        data = one(data)
    return data


UPCASTS: Final[dict[str, tuple[Upcast, ...]]] = {}
"""By type of event, the oldest first: each makes what the next one expects.

Of the whole process: a history is read in many places, and in each of them in today's words.
"""


def register(upcasts: Mapping[str, tuple[Upcast, ...]]) -> None:
    """Add a domain's. Doing it twice is doing it once."""
    for type_, chain in upcasts.items():
        known = UPCASTS.get(type_, ())
        UPCASTS[type_] = (*known, *(one for one in chain if one not in known))
