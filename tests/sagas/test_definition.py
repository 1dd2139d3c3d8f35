"""A saga that is written down wrongly is refused when its module is imported, in a sentence."""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from evosaga import sagas
from evosaga.sagas.definition import (
    DefinitionError,
    Kind,
    Retry,
    Saga,
    Step,
    compensatable,
    pivot,
    retryable,
)
from evosaga.sagas.registry import discover, registry_of
from tests.support.given_when_then import TRIP, nothing

HOTEL = compensatable("hotel", do=nothing, undo=nothing)
CAR = compensatable("car", do=nothing, undo=nothing)
PAY = pivot("pay", do=nothing)
MAIL = retryable("mail", do=nothing)


def saga(*steps: Step, version: int = 1) -> Saga:
    return replace(TRIP, steps=steps, version=version)


@pytest.mark.parametrize(
    "steps",
    [(HOTEL,), (PAY,), (MAIL,), (HOTEL, CAR, PAY, MAIL), (HOTEL, MAIL), (PAY, MAIL)],
    ids=lambda steps: " ".join(s.name for s in steps),
)
def test_every_part_of_the_order_may_be_missing(steps: tuple[Step, ...]) -> None:
    assert saga(*steps).steps == steps


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        pytest.param((), "has no steps", id="no steps"),
        pytest.param(
            (PAY, HOTEL),
            "compensatable step 'hotel' comes after pivot step 'pay'; "
            "the order is compensatable* pivot? retryable*",
            id="compensatable after pivot",
        ),
        pytest.param(
            (MAIL, HOTEL),
            "compensatable step 'hotel' comes after retryable step 'mail'",
            id="compensatable after retryable",
        ),
        pytest.param(
            (HOTEL, MAIL, PAY),
            "pivot step 'pay' comes after retryable step 'mail'",
            id="pivot after retryable",
        ),
        pytest.param((PAY, replace(PAY, name="sign")), "more than one pivot", id="two pivots"),
        pytest.param((HOTEL, CAR, HOTEL), "names a step twice: hotel", id="one name twice"),
        pytest.param(
            (replace(HOTEL, undo=None),),
            "step 'hotel' is compensatable and must have an undo",
            id="no undo",
        ),
        pytest.param(
            (replace(PAY, undo=nothing),),
            "step 'pay' is pivot and must not have an undo",
            id="an undo too many",
        ),
        pytest.param(
            (replace(MAIL, kind=Kind.COMPENSATABLE),), "must have an undo", id="kind changed"
        ),
        pytest.param((replace(PAY, timeout=0.0),), "needs a timeout", id="no timeout"),
        pytest.param((replace(PAY, retry=Retry(attempts=0)),), "an attempt", id="no attempt"),
    ],
)
def test_a_wrong_definition_is_refused_in_a_sentence(
    steps: tuple[Step, ...], sentence: str
) -> None:
    with pytest.raises(DefinitionError, match=re.escape(sentence)) as refusal:
        saga(*steps)
    assert "'book-a-trip' v1" in str(refusal.value), "it says which saga"


def test_versions_start_at_one() -> None:
    with pytest.raises(DefinitionError, match="versions start at 1"):
        saga(HOTEL, version=0)


def test_an_undo_is_asked_for_by_the_word_compensatable_itself() -> None:
    with pytest.raises(TypeError, match="undo"):
        compensatable("hotel", do=nothing)  # type: ignore[call-arg]


def test_a_step_is_found_by_its_name_and_a_stranger_is_not() -> None:
    assert TRIP.step("pay").kind is Kind.PIVOT
    with pytest.raises(KeyError, match=r"book-a-trip v1 has no step named 'train'"):
        TRIP.step("train")


class TestTheCatalogue:
    def test_finds_the_sagas_of_this_release(self) -> None:
        found = discover()
        assert {"integration.create", "integration.delete"} <= set(found.by_command)
        assert {("create-integration", 1), ("delete-integration", 1)} <= set(found.versions)

    def test_starts_the_newest_version_and_still_knows_the_old(self) -> None:
        old, new = saga(HOTEL), saga(HOTEL, PAY, version=2)
        found = registry_of([new, old])
        assert found.by_command["trip.book"] is new
        assert found.find("book-a-trip", 1) is old
        assert found.find("book-a-trip", 3) is None

    def test_refuses_one_version_twice(self) -> None:
        with pytest.raises(DefinitionError, match="'book-a-trip' v1 is defined twice"):
            registry_of([saga(HOTEL), saga(CAR)])

    def test_refuses_two_sagas_for_one_command(self) -> None:
        with pytest.raises(
            DefinitionError, match=r"'trip\.book' starts both 'book-a-trip' and 'sell-a-trip'"
        ):
            registry_of([TRIP, replace(TRIP, name="sell-a-trip")])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose modules belong to the package ``sagas``, as if they lay in it."""
    before = set(sys.modules)
    monkeypatch.setattr(sagas, "__path__", [*sagas.__path__, str(tmp_path)])
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("evosaga.sagas."):
            del sys.modules[name]
            delattr(sagas, name.removeprefix("evosaga.sagas."))


ONE_FILE = dedent(
    """
    from evosaga.sagas.definition import Saga, compensatable, pivot
    from tests.support.given_when_then import AnyInput, admit_nobody, nothing

    BOIL = Saga("boil-an-egg", 1, "egg.boil", AnyInput, admit_nobody, steps=(
        {steps}
    ))
    """
)


class TestANewFile:
    def test_below_sagas_is_a_new_saga(self, folder: Path) -> None:
        steps = 'compensatable("boil", do=nothing, undo=nothing),'
        (folder / "boil_an_egg.py").write_text(ONE_FILE.format(steps=steps))
        found = discover()
        assert found.by_command["egg.boil"].name == "boil-an-egg"
        assert found.by_command["integration.create"].name == "create-integration"

    def test_that_uses_another_files_saga_does_not_define_it_twice(self, folder: Path) -> None:
        (folder / "looks_on.py").write_text(
            "from evosaga.sagas.whatsapp.create_integration import CREATE_INTEGRATION\n"
        )
        assert discover().find("create-integration", 1) is not None

    def test_in_a_wrong_order_stops_the_start_of_the_process(self, folder: Path) -> None:
        steps = 'pivot("boil", do=nothing), compensatable("salt", do=nothing, undo=nothing)'
        (folder / "boil_an_egg.py").write_text(ONE_FILE.format(steps=steps))
        with pytest.raises(DefinitionError, match="'salt' comes after pivot step 'boil'"):
            discover()
