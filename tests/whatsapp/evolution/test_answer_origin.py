"""Whether an answer is Evolution's own: its shapes, and those of what stands before it."""

from typing import Any

import pytest

from evosaga.sagas.whatsapp.evolution.answer_origin import MEANINGS, cure_in, explained, recognised
from evosaga.sagas.whatsapp.evolution.answers import (
    Answer,
    Operation,
    Presence,
    Verdict,
    classify_create,
    classify_delete,
    health,
)
from evosaga.sagas.whatsapp.evolution.circuit_breaker import CallOutcome
from evosaga.sagas.whatsapp.evolution.evidence import read_look

ROW = {"name": "x", "token": "T", "connectionStatus": "close"}
PAGE, HALF = "a page", "half an answer"


def said(status: int, message: Any) -> Any:
    return {"status": status, "error": "Reason", "response": {"message": message}}


def answered(status: int, body: Any) -> Answer:
    """As the client reads it: of a page and of half an answer it has no body."""
    alien = body == PAGE and (200 <= status < 300 or 400 <= status < 500)
    return Answer(status, None if body in (PAGE, HALF) else body, f"HTTP {status}", alien=alien)


OWN: list[tuple[Operation, int, Any]] = [
    (Operation.CREATE, 201, {"instance": {"instanceName": "x"}, "hash": "T"}),
    (Operation.CREATE, 201, HALF),
    (Operation.CREATE, 200, {"error": True, "message": "[object Object]"}),
    (Operation.CREATE, 403, said(403, ['This name "x" is already in use.'])),
    (Operation.CREATE, 403, said(403, ["Missing global api key"])),
    (Operation.CREATE, 400, said(400, [["number does not match pattern"]])),
    (Operation.CREATE, 413, said(413, "request entity too large")),
    (Operation.CREATE, 401, said(401, "Unauthorized")),
    (Operation.DELETE, 200, {"status": "SUCCESS", "error": False, "response": {"message": "x"}}),
    (Operation.DELETE, 400, said(400, ["[object Object]"])),
    (Operation.STATE, 200, {"instance": {"instanceName": "x", "state": "open"}}),
    (Operation.STATE, 200, {"instance": {"instanceName": "x"}}),
    (Operation.STATE, 404, said(404, ['The "x" instance does not exist'])),
    (Operation.STATE, 404, HALF),
    (Operation.STATE, 401, said(401, "Unauthorized")),
    (Operation.OWN, 404, said(404, ['Instance "x" not found'])),
    (Operation.LIST, 200, []),
    (Operation.LIST, 200, [ROW]),
    (Operation.LIST, 200, [{"instance": {"instanceName": "x"}}]),  # 1.8
    (Operation.NAMED, 200, {"instance": {"instanceName": "x"}}),  # 1.8
    (Operation.CONNECT, 200, {}),
    (Operation.CONNECT, 200, {"count": 0}),
    *(
        (asked, status, PAGE)
        for asked in Operation
        for status in (408, 425, 429, 500, 502, 503, 504)
    ),
]
ALIEN: list[tuple[Operation, int, Any]] = [
    *((asked, status, PAGE) for asked in Operation for status in (200, 201, 204)),
    *(
        (asked, status, PAGE)
        for asked in Operation
        for status in (400, 401, 403, 404, 405, 407, 451)
    ),
    *((asked, 403, {"message": "Forbidden"}) for asked in Operation),
    *((asked, 404, {"detail": "Not Found"}) for asked in Operation),
    *((asked, 404, said(404, ["Cannot GET /api/instance/x"])) for asked in Operation),
    *((asked, 407, said(407, "log in")) for asked in Operation),
    *((asked, 511, PAGE) for asked in Operation),
    (Operation.CREATE, 200, {"status": "ok"}),
    (Operation.CREATE, 201, []),
    (Operation.DELETE, 200, {"status": "ok"}),
    (Operation.STATE, 200, {"status": "ok"}),
    (Operation.STATE, 200, []),
    (Operation.LIST, 200, {"status": "ok"}),
    (Operation.LIST, 200, [1, 2]),
    (Operation.LIST, 200, [{"id": 1}]),
    (Operation.CONNECT, 200, []),
]


def test_what_evolution_says_itself_is_read_as_it_is() -> None:
    for asked, status, body in OWN:
        answer = recognised(asked, answered(status, body))
        assert not answer.alien, (asked, status, body)
        assert answer.body == answered(status, body).body


def test_what_evolution_never_says_is_of_the_set_up_and_proves_nothing() -> None:
    for row in ALIEN:
        proves_nothing(*row)


def proves_nothing(asked: Operation, status: int, body: Any) -> None:
    answer = recognised(asked, answered(status, body))
    assert answer.alien, (asked, status, body)
    assert answer.body is None
    assert health(asked, answer) is CallOutcome.MISCONFIGURED
    assert cure_in(f"Evolution answered {answer.told} (server berlin)") is not None
    if asked in (Operation.STATE, Operation.OWN, Operation.NAMED, Operation.LIST):
        assert read_look(asked, answer, "x", "T")[0] is Presence.UNKNOWN
    if asked is Operation.CREATE:
        # Who says that it is done may have handed it on; who refuses has not.
        well = status < 300
        assert classify_create(answer) is (Verdict.AMBIGUOUS if well else Verdict.MISCONFIGURED)
    if asked is Operation.DELETE:
        assert classify_delete(answer) is not Verdict.LANDED


LICENCE = {"error": "service not activated", "code": "LICENSE_REQUIRED"}


@pytest.mark.parametrize(
    ("status", "body", "cure"),
    [
        (500, said(500, "Not allowed by CORS"), "unset CORS_ORIGIN"),
        (403, said(403, ["Missing global api key"]), "EVOSAGA_EVOLUTION_API_KEY"),
        (401, said(401, "Unauthorized"), "EVOSAGA_EVOLUTION_API_KEY"),
        (302, None, "the address it leads to"),
        (503, LICENCE, "register the Evolution server"),
        (
            503,
            LICENCE | {"register_url": "https://evo.example/register?id=7"},
            "register the Evolution server at https://evo.example/register?id=7",
        ),
        # What can't be shown is not shown.
        (503, LICENCE | {"register_url": "javascript:alert(1)"}, "register the Evolution server"),
        (503, LICENCE | {"register_url": "https://u:p@evo.example"}, "register the"),
        (503, LICENCE | {"register_url": "https://evo.example/\x1b[2J"}, "register the"),
        (503, LICENCE | {"register_url": 17}, "register the Evolution server"),
    ],
)
def test_each_misconfiguration_has_words_of_its_own_and_a_cure(
    status: int, body: Any, cure: str
) -> None:
    answer = explained(Answer(status, body, f"HTTP {status}"))
    assert cure in answer.meaning
    told = cure_in(f"Evolution answered {answer.told}")
    assert told is not None
    assert told.startswith(cure) or cure in told
    assert "u:p@" not in answer.meaning
    assert answer.meaning.isprintable()


def test_the_address_to_register_at_is_found_again_in_a_sentence() -> None:
    body = LICENCE | {"register_url": "https://evo.example/register"}
    told = explained(Answer(503, body, "HTTP 503")).told
    sentence = f"Evolution is not asked at the moment (list: {told}) (server berlin)"
    assert cure_in(sentence) == "register the Evolution server at https://evo.example/register"


def test_a_sentence_of_another_kind_has_no_cure_of_this_one() -> None:
    assert cure_in("Evolution answered HTTP 401: check everything") is None
    assert len({meaning.said for meaning in MEANINGS}) >= len(MEANINGS) - 1
