"""Which of several sagas with one business key goes first: the declared policy, carried out. Pure.

Those that wait form a queue: each is behind the last one before it, and no two are behind the same
(the database holds that). While a saga waits it holds ``{key}/behind/{its id}`` instead of the key.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar
from uuid import UUID

from evosaga.sagas.admission import OTHERS, Admission, Answer, OnConflict, Refusal, Verdict
from evosaga.sagas.outcome import FollowUp

LONGEST_QUEUE: Final = 10
"""Sagas that may wait for one key; a caller that repeats itself meets this limit."""
BEHIND: Final = "/behind/"
IN_PROGRESS: Final = "in_progress"
KEY_IN_USE: Final = "the business key is in use: try again later, or use another one"
"""All that is said of a saga of another organization."""
_SAME_KEY: Final = ", which has the same business key,"


@dataclass(frozen=True, slots=True)
class OpenSaga:
    """A saga that is running, compensating or parked."""

    saga_id: UUID
    saga: str
    status: str
    business_key: str
    organization_id: UUID | None = None
    instance_name: str | None = None
    step: str | None = None
    behind: UUID | None = None

    @property
    def wants(self) -> str:
        """The key that it holds, or waits for."""
        return self.business_key.removesuffix(f"{BEHIND}{self.saga_id}")


OpenT = TypeVar("OpenT", bound=OpenSaga)


def answer_to(policy: OnConflict, saga: str) -> Answer:
    """What a definition declares for a saga of that name in its way."""
    if isinstance(policy, str):
        return policy
    return policy.get(saga) or policy.get(OTHERS, "refuse")


def in_words(policy: OnConflict) -> str:
    """A declared policy as a person reads it."""
    if isinstance(policy, str):
        return _WORDS[policy]
    said = [f"{_WORDS[answer]} beside {name}" for name, answer in policy.items() if name != OTHERS]
    return ", ".join([*said, f"else {_WORDS[policy.get(OTHERS, 'refuse')]}"])


_WORDS: Final[dict[Answer, str]] = {
    "refuse": "refused",
    "wait": "waits for its turn",
    "supersede": "asks the one ahead to stop and waits for its turn",
}


def last_of(queue: Sequence[OpenSaga]) -> OpenSaga:
    """Whoever comes next is behind this one. ``queue`` is not empty, and in its order."""
    followed = {saga.behind for saga in queue}
    return next((saga for saga in reversed(queue) if saga.saga_id not in followed), queue[-1])


def weigh(
    policy: OnConflict,
    saga_id: UUID,
    wanted: Admission,
    queue: Sequence[OpenSaga],
    whose: str | None = None,
) -> Verdict:
    """What becomes of a command that would be admitted, beside the open sagas in its way.

    ``whose``: what the sentence of a refusal says of the one in the way, where the definition's own
    admission has judged what organizations may do to each other. Else the command is refused if one
    in the way is another organization's, which is neither named nor stopped.
    """
    if not queue:
        return wanted
    if whose is None and (strange := _of_another(wanted, queue)) is not None:
        return strange
    parked = next((saga for saga in queue if saga.status == "failed"), None)
    ahead = parked or last_of(queue)
    answer = answer_to(policy, ahead.saga)
    waiting = sum(saga.behind is not None for saga in queue)
    if parked is not None or answer == "refuse" or waiting >= LONGEST_QUEUE:
        said = _sentence(
            ahead, whose or _SAME_KEY, full=answer != "refuse" and waiting >= LONGEST_QUEUE
        )
        return Refusal(
            IN_PROGRESS,
            said,
            wanted.business_key,
            wanted.organization_id,
            wanted.instance_name,
            ahead.instance_name or wanted.instance_name,
        )
    stop = answer == "supersede" and _stoppable(ahead, wanted)
    return replace(
        wanted,
        business_key=f"{wanted.business_key}{BEHIND}{saga_id}",
        facts=wanted.facts | {"behind": str(ahead.saga_id)},
        behind=ahead.saga_id,
        follow_up=_cancel(ahead.saga_id, saga_id) if stop else wanted.follow_up,
    )


def _of_another(wanted: Admission, queue: Sequence[OpenSaga]) -> Refusal | None:
    """The refusal where an organization's saga is in the way of a command of another one."""
    mine = wanted.organization_id
    if not any(strangers(mine, saga.organization_id) for saga in queue):
        return None
    return Refusal(IN_PROGRESS, KEY_IN_USE, wanted.business_key, mine, wanted.instance_name)


def strangers(mine: UUID | None, theirs: UUID | None) -> bool:
    """Whether these are two organizations, of which neither is told of the other's sagas."""
    return None not in (mine, theirs) and mine != theirs


def _stoppable(ahead: OpenSaga, wanted: Admission) -> bool:
    """What is being undone needs no cancel, and what is about another instance is none of ours."""
    same = (
        None in (ahead.instance_name, wanted.instance_name)
        or ahead.instance_name == wanted.instance_name
    )
    return ahead.status == "running" and same and wanted.follow_up is None


def _cancel(ahead: UUID, saga_id: UUID) -> FollowUp:
    """It may come too late, or after the end: then the one behind finds what was made."""
    reason = f"it is superseded by saga {saga_id}"
    return FollowUp("saga.cancel", {"saga_id": str(ahead), "reason": reason, "if_possible": True})


def _sentence(ahead: OpenSaga, whose: str, *, full: bool) -> str:
    who = f"saga {ahead.saga_id} ({ahead.saga})"
    if ahead.status == "failed":
        return (
            f"{who}{whose} is parked at step {ahead.step or 'its first'}: replay it first, as "
            f"evosaga why {ahead.saga_id} says"
        )
    if full:
        return f"enough commands wait for their turn already; the last of them is {who}"
    doing = "still being undone" if ahead.status == "compensating" else "at work already"
    return f"{who}{whose} is {doing}: try again when it is over"


class Queues(Generic[OpenT]):
    """Open sagas by the key and by the instance name that they hold or wait for."""

    def __init__(self, sagas: Iterable[OpenT] = ()) -> None:
        self.by_key: dict[str, list[OpenT]] = {}
        self.by_name: dict[str, list[OpenT]] = {}
        for saga in sagas:
            self.add(saga)

    def add(self, saga: OpenT) -> None:
        """One more: whoever is weighed from here on sees it."""
        self.by_key.setdefault(saga.wants, []).append(saga)
        if saga.instance_name is not None:
            self.by_name.setdefault(saga.instance_name, []).append(saga)

    def of(self, key: str, name: str | None = None) -> list[OpenT]:
        """Those in the way of whoever wants that key, and that name."""
        named = self.by_name.get(name, ()) if name is not None else ()
        return [*self.by_key.get(key, ()), *(saga for saga in named if saga.wants != key)]


def begun(saga_id: UUID, saga: str, verdict: Admission) -> OpenSaga:
    """A saga that an earlier command of the same batch starts, as the later ones find it."""
    return OpenSaga(
        saga_id,
        saga,
        "running",
        verdict.business_key,
        verdict.organization_id,
        verdict.instance_name,
        behind=verdict.behind,
    )
