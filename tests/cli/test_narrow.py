"""Tables in windows of 60, 80 and 200 columns: an id is never cut, a cure never vanishes. Pure."""

import pytest
from rich.console import Console

from evosaga.orchestrator.cli.alerts import tell_alerts
from evosaga.orchestrator.cli.dead_letters import draw_letters
from evosaga.orchestrator.cli.health import tell_connections
from evosaga.orchestrator.cli.integration_lists import tell_integrations
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.reconcile_report import draw_described
from evosaga.orchestrator.cli.recover_report import draw
from evosaga.orchestrator.cli.start import tell_definitions

NAME = "wa-01a22d2a-da95-746e-a725-6a01f33b2fb7"
ORGANIZATION = "4e8ddba1-ad52-4613-9a03-ec64636b3f6c"
CLINIC = "Odontologia e Estética Vida Nova, unidade do Jardim das Acácias"
CURE = "WhatsApp bans or forbids the number: see what it says on the phone itself, and scan again"
REPAIR = "remove the instance, with its own token"


def window(width: int) -> Output:
    """A terminal so wide."""
    out = Output()
    out.terminal = True
    out._console = Console(width=width, highlight=False, soft_wrap=False, color_system=None)
    return out


def drawn(width: int, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The lines of ``health``, ``reconcile`` and ``letters`` in a window so wide."""
    out = window(width)
    patient = {
        "instance": NAME,
        "name": CLINIC,
        "organization": ORGANIZATION,
        "id": "left out",
        "row": "disconnected",
        "state": "banned",
        "since": "2026-11-30T15:55:57+00:00",
        "cure": CURE,
        "well": False,
    }
    drift = {"what": "duplicate", "where": NAME, "policy": "ask", "cause": CURE, "repair": REPAIR}
    letter = {
        "letter_id": "1764439698000-0",
        "came_at": "2026-11-30T15:55:57+00:00",
        "code": "malformed_json",
        "data": f'{{"id": "{ORGANIZATION}"}}',
        "message": CURE,
    }
    pages = []
    tell_connections([patient] * 2, {"banned": 2}, out)
    pages.append(capsys.readouterr().out.splitlines())
    draw_described([drift] * 2, out)
    pages.append(capsys.readouterr().out.splitlines())
    draw_letters([letter] * 2, out)
    pages.append(capsys.readouterr().out.splitlines())
    return pages


@pytest.mark.parametrize("width", [60, 80, 200])
def test_nothing_is_cut_or_left_out_and_no_line_is_wider_than_the_window(
    width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    health, drifts, letters = drawn(width, capsys)
    for page, ids, sentences in (
        (health, (NAME, ORGANIZATION), (CURE,)),
        (drifts, (NAME,), (CURE, REPAIR)),
        (letters, ("1764439698000-0", ORGANIZATION), (CURE,)),
    ):
        assert max(map(len, page)) <= width
        text = "\n".join(page)
        assert "…" not in text
        for one in ids:
            assert text.count(one) == 2, one
        if width < 200:  # as a card, whose sentences are in one piece
            words = " ".join(text.split())
            for sentence in sentences:
                assert words.count(sentence) == 2
        else:  # as a table, whose columns are folded
            assert all(word in text for sentence in sentences for word in sentence.split())


@pytest.mark.parametrize("width", [60, 80, 200])
def test_lists_of_integrations_sagas_and_alerts_are_whole_at_any_width(
    width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out = window(width)
    at = "2026-11-30T15:55:57+00:00"
    integration = {
        "instance_name": NAME,
        "organization_id": ORGANIZATION,
        "name": CLINIC,
        "status": "disconnected",
        "connection": "needs_qr",
        "whatsapp_number": "5511900000000",
    }
    page = {"integrations": [integration], "count": 1, "more": False, "cursor": None}
    alert = {"id": 4711, "status": "firing", "severity": "critical", "opened_at": at}
    alert |= {"message": CURE, "cure": REPAIR, "runbook": "https://runbook.example/#phones"}
    saga = {"saga": "create-integration", "version": 3, "internal": False, "keyed": True}
    saga |= {"command": "integration.create", "package": "evosaga.sagas.whatsapp"}
    step = {"name": "evolution", "kind": "compensatable", "undo": "remove_instance", "limits": []}
    saga |= {"steps": [{**step, "attempts": 5, "undo_attempts": 5}] * 4, "on_conflict": "refuse"}
    tell_integrations(page, out)
    integrations = capsys.readouterr().out
    tell_alerts([alert], out)
    alerts = capsys.readouterr().out
    tell_definitions([saga], out, schema=False)
    sagas = capsys.readouterr().out
    for told, ids, sentence in (
        (integrations, (NAME, ORGANIZATION, "5511900000000"), CLINIC),
        (alerts, ("4711", "https://runbook.example/#phones"), f"{CURE} {REPAIR}"),
        (sagas, ("integration.create",), "remove_instance"),
    ):
        lines = told.splitlines()
        assert max(map(len, lines)) <= width
        text = "\n".join(lines)
        assert "…" not in text
        assert all(one in text for one in ids)
        assert all(word in text for word in sentence.split())


def test_headers_are_in_one_style(capsys: pytest.CaptureFixture[str]) -> None:
    wide = drawn(200, capsys)
    assert all(page[0] == page[0].upper() for page in wide)
    narrow = drawn(60, capsys)
    assert [page[0].partition(":")[0] for page in narrow] == ["instance", "what", "letter"]


def test_recover_says_that_a_command_that_is_taken_again_comes_before_its_instance_is_removed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = NAME.replace("wa-", "wb-")
    saga = {"saga": "create-integration", "saga_id": "1", "events": 1, "last": "saga.started"}
    sagas = [
        saga | {"command_id": "c1", "what": "taken_again", "instance_name": NAME},
        saga | {"command_id": "c2", "what": "lost", "instance_name": other},
    ]
    left = {"what": "rowless", "does": "remove", "cause": CURE, "repair": REPAIR}
    instances = [left | {"where": name} for name in (NAME, other)]
    plan = {"went_back": None, "commands": [], "sagas": sagas, "instances": instances}
    draw(plan, Output())
    again, lost = capsys.readouterr().out.splitlines()[-2:]
    assert NAME in again
    assert "command" in again.split()
    assert f"taken again first, and a create keeps it; if it is left then: {REPAIR}" in again
    assert "remove" in lost.split()
    assert lost.endswith(REPAIR)
    assert "taken again" not in lost
