"""Routes for operators: dead letters, workers and background jobs."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query
from pydantic import Field

from evosaga.events import dead_letters
from evosaga.orchestrator.api import schemas
from evosaga.orchestrator.api.auth import operator
from evosaga.orchestrator.api.dependencies import Context
from evosaga.orchestrator.api.openapi import EVERYWHERE, problems
from evosaga.orchestrator.api.problems import Problem
from evosaga.orchestrator.queries import upkeep

router: Final = APIRouter(tags=["operations"])
_Limit = Annotated[int, Query(ge=1, le=1000)]
_FOR_OPERATORS: Final[dict[str, Any]] = {
    "responses": problems("forbidden", *EVERYWHERE),
    "dependencies": [Depends(operator)],
}
"""Routes that show all organizations at once, so they take a key that belongs to none."""
_FOR_ONE_LETTER: Final = _FOR_OPERATORS | {
    "responses": problems("forbidden", "unknown_letter", *EVERYWHERE)
}
_LETTER: Final = "^[0-9]{1,19}-[0-9]{1,19}$"
_LetterId = Annotated[str, Path(pattern=_LETTER, examples=["1767778200123-0"])]


class DeadLetterShape(schemas.Shape):
    """A message on the stream of commands that could not be one, with the reason."""

    letter_id: str = Field(examples=["1767778200123-0"])
    came_at: datetime
    message_id: str
    code: str = Field(examples=["malformed_json"])
    message: str
    deliveries: int
    data: str = Field(description="what was sent; bytes that are no UTF-8 as escapes")
    fields: dict[str, str]


class DeadLetterPage(schemas.Shape):
    """A page, newest first. ``cursor`` leads to the next one; null: this was the last."""

    letters: list[DeadLetterShape]
    cursor: str | None


class Removed(schemas.Shape):
    removed: int = Field(examples=[1])


class SentAgain(schemas.Shape):
    sent: int = Field(examples=[1])


class WorkerShape(schemas.Shape):
    worker_id: str = Field(examples=["host-4711-0a1b2c3d"])
    alive: bool
    started_at: datetime
    lease_until: datetime
    sagas: int = Field(description="sagas that it has in hand")
    definitions: list[str] = Field(examples=[["create-integration/1"]])


class WorkerList(schemas.Shape):
    """Workers that have shown a sign of life in the last hour, those alive first."""

    workers: list[WorkerShape]


class JobShape(schemas.Shape):
    name: str = Field(examples=["reconcile"])
    leader: str | None = Field(description="the worker that is at it now")
    last_run: datetime | None
    next_at: datetime
    result: dict[str, Any] = Field(description="what came of the last run")


class JobList(schemas.Shape):
    jobs: list[JobShape]


@router.get(
    "/dead-letters",
    summary="Commands that could not be understood",
    operation_id="listDeadLetters",
    **_FOR_OPERATORS,
)
async def letters(
    here: Context,
    limit: _Limit = 100,
    cursor: Annotated[str | None, Query(pattern=_LETTER)] = None,
) -> DeadLetterPage:
    """What was sent, why it was refused, and how often it was delivered."""
    found, before = await dead_letters.page(here.redis, limit, cursor)
    return DeadLetterPage(letters=[_letter(letter) for letter in found], cursor=before)


@router.delete(
    "/dead-letters/{letter_id}",
    summary="Discard a dead letter",
    operation_id="removeDeadLetter",
    **_FOR_ONE_LETTER,
)
async def remove(here: Context, letter_id: _LetterId) -> Removed:
    """For one that was read and needs nothing more; it can't be had back."""
    if not (gone := await dead_letters.delete(here.redis, [letter_id])):
        raise _unknown(letter_id)
    return Removed(removed=gone)


@router.post(
    "/dead-letters/{letter_id}/send",
    summary="Send a dead letter again",
    operation_id="sendDeadLetterAgain",
    **_FOR_ONE_LETTER,
)
async def send_again(here: Context, letter_id: _LetterId) -> SentAgain:
    """Puts the message back on the stream of commands as it was sent, and discards the letter."""
    found = await dead_letters.some(here.redis, [letter_id])
    if not found:
        raise _unknown(letter_id)
    await dead_letters.send_again(here.redis, found)
    return SentAgain(sent=len(found))


def _unknown(letter_id: str) -> Problem:
    detail = f"there is no dead letter {letter_id}; it may have been discarded or sent again"
    return Problem("unknown_letter", detail)


def _letter(letter: dead_letters.StoredDeadLetter) -> DeadLetterShape:
    return DeadLetterShape(
        letter_id=letter.id,
        came_at=letter.came_at,
        message_id=letter.message_id,
        code=letter.code,
        message=letter.message,
        deliveries=letter.deliveries,
        data=letter.data.decode(errors="backslashreplace"),
        fields={name: raw.decode(errors="backslashreplace") for name, raw in letter.others.items()},
    )


@router.get("/workers", summary="The workers", operation_id="listWorkers", **_FOR_OPERATORS)
async def workers(here: Context) -> WorkerList:
    """Which are alive, what each can run, and how many sagas it has in hand."""
    found = await upkeep.workers(here.pool)
    return WorkerList(workers=[WorkerShape(**asdict(one)) for one in found])


@router.get("/jobs", summary="The background jobs", operation_id="listJobs", **_FOR_OPERATORS)
async def jobs(here: Context) -> JobList:
    """When each ran last, what came of it, and when it runs next."""
    return JobList(jobs=[JobShape(**asdict(one)) for one in await upkeep.jobs(here.pool)])
