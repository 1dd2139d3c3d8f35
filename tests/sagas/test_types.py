"""A type checker sees what a step reads: fields of the input, and what the domain opened."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
from contextlib import asynccontextmanager
from collections.abc import AsyncIterator
from evosaga import Command, Done, Outcome, Saga, StepContext, domain, retryable

class Book(Command):
    command = "room.book"
    room: int

class Bank:
    async def charge(self, euros: int) -> str: ...

class Door: ...

async def good(ctx: StepContext[Book, Bank]) -> Outcome:
    return Done({"receipt": await ctx.services.charge(ctx.input.room)})

async def bad(ctx: StepContext[Book, Bank]) -> Outcome:
    await ctx.services.charge(ctx.input.rom)  # no such field
    await ctx.services.refund()  # no such service
    return Done()

async def elsewhere(ctx: StepContext[Book, Door]) -> Outcome:
    return Done()

def saga(step) -> None: ...

FITS = Saga("fits", 1, "room.book", Book, steps=(retryable("good", do=good),))
MIXED: Saga[Book, Bank] = Saga(
    "mixed", 1, "room.book", Book, steps=(retryable("good", do=good), retryable("x", do=elsewhere))
)

@asynccontextmanager
async def open_door() -> AsyncIterator[Door]:
    yield Door()

domain("hotel", FITS, services=open_door)
"""


@pytest.mark.long
def test_a_step_that_reads_what_is_not_there_is_an_error_of_types(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    told = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", str(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    for said in (
        '"Book" has no attribute "rom"',
        '"Bank" has no attribute "refund"',
        'Argument "do" to "retryable" has incompatible type "Callable[[StepContext[Book, Door]]',
        'Argument "services" to "domain" has incompatible type',
    ):
        assert said in told.stdout, told.stdout
