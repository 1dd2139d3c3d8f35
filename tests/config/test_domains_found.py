"""Which domains a process runs, and the one sentence on each that can't be loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.testing.hotel import made
from tests.support.commandline import forked

SCRIPT = "import sys; from evosaga.orchestrator.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def inn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package's folder, with modules beside it that are wrong in their own ways."""
    place = made(tmp_path_factory.mktemp("found"), "inn")
    sagas = (place / "inn" / "sagas.py").read_text()
    order = sagas.replace('compensatable("reserve", do=reserve, undo=release),\n', "").replace(
        "retryable(", 'compensatable("reserve", do=reserve, undo=release),\n        retryable('
    )
    (place / "wrong_order.py").write_text(order)
    (place / "no_syntax.py").write_text("def x(:\n")
    (place / "imports.py").write_text("\n\nimport nothing_of_that_name\n")
    (place / "plain.py").write_text("A = 1\n")
    (place / "steers.py").write_text(sagas.replace('"room.book"', '"saga.cancel"'))
    (place / "same.py").write_text(sagas)
    return place


async def ran(place: Path, *words: str) -> tuple[int, str]:
    told = await forked(words, {"PATH": os.environ["PATH"]}, place)
    return told.code, told.out + told.err


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ("nowhere:DOMAIN", "there is no module 'nowhere'; is its package installed"),
        pytest.param("inn.sagas:NOTHING", "has no attribute 'NOTHING'", marks=pytest.mark.long),
        pytest.param(
            "inn.sagas:BOOK_A_ROOM",
            "is no domain but a Saga; make one: evosaga.domain(",
            marks=pytest.mark.long,
        ),
        pytest.param(
            "plain", "plain is no domain but a module without one", marks=pytest.mark.long
        ),
        ("no_syntax", "no_syntax.py:1: SyntaxError"),
        pytest.param("imports", "imports.py:3: ModuleNotFoundError", marks=pytest.mark.long),
        ("wrong_order", "'reserve' comes after pivot step 'charge'"),
        ("inn.sagas,same", "inn.sagas and same both define the saga 'book-a-room'"),
        ("steers", "takes the command 'saga.cancel', which is evosaga's own"),
        pytest.param("../x", "EVOSAGA_APP: ", marks=pytest.mark.long),
    ],
)
async def test_a_domain_that_cannot_be_loaded_is_refused_in_one_line(
    inn: Path, app: str, said: str
) -> None:
    code, told = await ran(inn, "sagas", "--app", app)
    assert code == 2, told
    assert said in told
    assert len(told.splitlines()) == 1


async def test_the_line_that_is_wrong_is_named(inn: Path) -> None:
    _, told = await ran(inn, "sagas", "--app", "wrong_order")
    assert "wrong_order.py:" in told


def test_its_sagas_are_listed_with_their_package_and_whatsapp_is_not_there(inn: Path) -> None:
    # From the first byte on: a process that has imported nothing of WhatsApp before.
    listing = [sys.executable, "-c", SCRIPT, "sagas", "--app", "inn.sagas:DOMAIN"]
    done = subprocess.run(listing, cwd=inn, capture_output=True, text=True, check=False)
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert "book-a-room v1  room.book  (inn.sagas)" in told
    assert (
        "reserve (undone by release) > charge (no way back) > send-key (tried until done)" in told
    )
    assert "create-integration" not in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("room.sell",), "known: room.book"),
        (("room.book", "--data", "{"), "--data: "),
        pytest.param(
            ("room.book", "--data", "[]"), "must be a JSON object", marks=pytest.mark.long
        ),
        pytest.param(
            ("room.book", "--data", "@nowhere.json"),
            "'nowhere.json' can't be read",
            marks=pytest.mark.long,
        ),
        (("room.book", "--data", '{"room": 1, "guest": "ada", "euros": 80}'), "room: "),
        pytest.param(
            ("room.book", "--data", '{"room": 101, "guest": "ada", "cents": 80}'),
            "cents: ",
            marks=pytest.mark.long,
        ),
    ],
)
async def test_a_command_that_would_be_refused_is_refused_before_it_is_sent(
    inn: Path, words: tuple[str, ...], said: str
) -> None:
    code, told = await ran(inn, "start", "--app", "inn.sagas", *words)
    assert code == 2, told
    assert said in told


@pytest.mark.parametrize("verb", ["health", "integrations"])
async def test_without_whatsapp_its_verbs_say_what_turns_it_on(inn: Path, verb: str) -> None:
    code, told = await ran(inn, verb, "--app", "inn.sagas")
    assert code == 2
    assert "set EVOSAGA_EVOLUTION_URL to your Evolution API server" in told


_MORE = ("1st", "a b", "class", "json")


@pytest.mark.parametrize(
    "name",
    ["Hotel", "evosaga", "inn", *(pytest.param(name, marks=pytest.mark.long) for name in _MORE)],
)
async def test_a_name_that_no_package_can_have_is_refused(inn: Path, name: str) -> None:
    (inn / "inn").mkdir(exist_ok=True)
    code, told = await ran(inn, "new", name)
    assert code == 2
    assert "can't be a package's name" in told or "exists already" in told
