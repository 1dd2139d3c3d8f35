"""Who comes first: the table of arbitration, asked of the function that decides.

``tests/whatsapp/test_arbitration.py`` asks the same of the whole product.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import ValidationError

from evosaga.sagas.admission import Admission, Candidate, Refusal
from evosaga.sagas.conflicts import LONGEST_QUEUE
from evosaga.sagas.whatsapp.admission_facts import Found, OpenSaga, Row
from evosaga.sagas.whatsapp.admission_rules import Policy, arbitrate
from evosaga.sagas.whatsapp.arbitration import business_key
from evosaga.sagas.whatsapp.create_integration import CREATE_INTEGRATION, CreateIntegration
from evosaga.sagas.whatsapp.delete_integration import DELETE_INTEGRATION, DeleteIntegration
from tests.whatsapp.rivals import lines

MINE, OTHER, CLINIC = uuid4(), uuid4(), uuid4()
AHEAD, COMER = UUID(int=1), UUID(int=99)
NAME = "the-name"
POLICY = Policy("0a1b2c3d", deadline_seconds=900.0)
KEY = business_key(MINE)

ROW = Row(AHEAD, MINE, NAME, "connected", clinic_id=str(CLINIC), key_id="0a1b2c3d", server="berlin")
CREATING = OpenSaga(
    AHEAD,
    "create-integration",
    "running",
    KEY,
    MINE,
    NAME,
    step="evolution",
    clinic_id=str(CLINIC),
    facts={
        "instance_name": NAME,
        "created_by": str(AHEAD),
        "key_id": "0a1b2c3d",
        "server": "berlin",
    },
)
DELETING = replace(
    CREATING,
    saga="delete-integration",
    facts={
        "instance_name": NAME,
        "integration_id": str(AHEAD),
        "created_by": str(AHEAD),
        "status": "connected",
        "clinic_id": str(CLINIC),
        "organization_id": str(MINE),
        "key_id": "0a1b2c3d",
        "server": "berlin",
        "behind": str(UUID(int=7)),
    },
)
REPAIRING = replace(CREATING, saga="mend-integration", facts={})
WAITING = [
    replace(
        DELETING,
        saga_id=UUID(int=n + 1),
        business_key=f"{KEY}/behind/{UUID(int=n + 1)}",
        behind=UUID(int=n),
    )
    for n in range(1, LONGEST_QUEUE + 1)
]

SCENES: dict[str, Found] = {
    "nothing": Found(),
    "an integration": Found([ROW]),
    "a create on its way": Found([], [CREATING]),
    "a create past its point of no return": Found([ROW], [replace(CREATING, step="pair")]),
    "a create being undone": Found([], [replace(CREATING, status="compensating")]),
    "a parked create": Found([ROW], [replace(CREATING, status="failed", step="notify")]),
    "a delete on its way": Found([ROW], [DELETING]),
    "a parked delete": Found([ROW], [replace(DELETING, status="failed")]),
    "another saga on its way": Found([ROW], [REPAIRING]),
    "another saga, parked": Found([ROW], [replace(REPAIRING, status="failed")]),
    "a full queue": Found([ROW], [DELETING, *WAITING]),
}


def create(**fields: Any) -> CreateIntegration:
    data = {"organization_id": MINE, "clinic_id": CLINIC, "name": "Clínica Sol"}
    return CreateIntegration.model_validate(data | fields)


def delete(**fields: Any) -> DeleteIntegration:
    return DeleteIntegration.model_validate({"instance_name": NAME} | fields)


COMERS = {
    "create": create(),
    "namesake": create(organization_id=OTHER, instance_name=NAME),
    "delete": delete(),
}


def candidate(saga_id: UUID, data: Any) -> Candidate[Any]:
    definition = CREATE_INTEGRATION if data.asks == "create" else DELETE_INTEGRATION
    return Candidate(saga_id, data, definition.on_conflict)


def weigh(found: Found, *commands: Any) -> list[Admission | Refusal]:
    numbered = [candidate(UUID(int=COMER.int + n), data) for n, data in enumerate(commands)]
    return arbitrate(found, numbered, POLICY)


def in_words(verdict: Admission | Refusal) -> str:
    if isinstance(verdict, Refusal):
        return verdict.code
    if verdict.behind is None:
        return "begins"
    return "waits, and stops it" if verdict.follow_up else "waits"


def admitted(verdict: Admission | Refusal) -> Admission:
    assert isinstance(verdict, Admission), verdict
    return verdict


def refused(verdict: Admission | Refusal) -> Refusal:
    assert isinstance(verdict, Refusal), verdict
    return verdict


@pytest.mark.parametrize("comer", COMERS)
@pytest.mark.parametrize("there", lines())
def test_the_table(there: str, comer: str) -> None:
    [verdict] = weigh(SCENES[there], COMERS[comer])
    assert in_words(verdict) == lines()[there][comer]


@pytest.mark.parametrize("there", [there for there in lines() if there != "nothing"])
def test_a_refused_create_is_told_what_is_there(there: str) -> None:
    refusal = refused(weigh(SCENES[there], create())[0])
    assert refusal.existing_instance == NAME
    assert (refusal.business_key, refusal.organization_id) == (KEY, MINE)
    if SCENES[there].sagas:
        assert any(str(saga.saga_id) in refusal.message for saga in SCENES[there].sagas)


@pytest.mark.parametrize("there", [there for there in lines() if "parked" in there])
def test_whoever_meets_a_parked_saga_is_told_which_one_to_replay_or_cancel(there: str) -> None:
    for command in (create(), delete()):
        message = refused(weigh(SCENES[there], command)[0]).message
        assert f"saga {AHEAD} " in message
        assert "replay it first" in message


@pytest.mark.fault("a13")
@pytest.mark.parametrize("there", lines())
def test_another_organizations_delete_finds_nothing_wherever_it_comes(there: str) -> None:
    strange = refused(weigh(SCENES[there], delete(organization_id=OTHER))[0])
    nobody = refused(weigh(Found(), delete(organization_id=OTHER))[0])
    assert strange == nobody
    assert strange.code == "not_found"


@pytest.mark.parametrize("there", lines())
def test_a_namesake_learns_nothing_but_that_the_name_is_taken(there: str) -> None:
    [verdict] = weigh(SCENES[there], COMERS["namesake"])
    if isinstance(verdict, Refusal):
        assert verdict.message == f"another integration uses the instance name {NAME}"
        assert verdict.organization_id == OTHER


def test_a_delete_that_waits_holds_a_key_of_its_own_and_stands_behind_the_last() -> None:
    waits = admitted(weigh(SCENES["a create on its way"], delete())[0])
    assert (waits.behind, waits.business_key) == (AHEAD, f"{KEY}/behind/{COMER}")
    assert waits.facts["behind"] == str(AHEAD)
    queue = Found([ROW], [CREATING, *WAITING[:3]])
    assert admitted(weigh(queue, delete())[0]).behind == WAITING[2].saga_id
    backwards = Found([ROW], [*reversed(WAITING[:3]), CREATING])
    assert admitted(weigh(backwards, delete())[0]).behind == WAITING[2].saga_id


def test_a_delete_that_has_waited_keeps_everybody_else_out_though_it_holds_no_key() -> None:
    """The one ahead of it is over, and nothing may begin before it is over as well."""
    at_work = Found([], [WAITING[0]])
    assert in_words(weigh(at_work, create())[0]) == "in_progress"
    assert in_words(weigh(at_work, COMERS["namesake"])[0]) == "name_taken"
    [verdict] = weigh(at_work, delete())
    assert admitted(verdict).behind == WAITING[0].saga_id


@pytest.mark.parametrize("there", ["a create on its way", "a delete on its way"])
def test_a_delete_without_a_row_knows_what_the_saga_ahead_knows(there: str) -> None:
    [verdict] = weigh(Found([], SCENES[there].sagas), delete())
    facts = admitted(verdict).facts
    assert {k: v for k, v in facts.items() if k not in ("behind", "status")} == {
        "instance_name": NAME,
        "integration_id": str(AHEAD),
        "created_by": str(AHEAD),
        "clinic_id": str(CLINIC),
        "organization_id": str(MINE),
        "key_id": "0a1b2c3d",
        "server": "berlin",
    }
    assert facts["behind"] == str(AHEAD)


def test_a_delete_goes_to_the_server_of_the_row_and_a_create_to_the_one_it_names() -> None:
    assert admitted(weigh(Found([ROW]), delete())[0]).facts["server"] == "berlin"
    assert admitted(weigh(Found(), create())[0]).facts["server"] == "default"
    two = replace(POLICY, servers=frozenset({"default", "berlin"}))
    [verdict] = arbitrate(Found(), [candidate(COMER, create(server="berlin"))], two)
    assert admitted(verdict).facts["server"] == "berlin"


def test_a_server_that_is_not_configured_is_refused_before_anything_else_is_weighed() -> None:
    [verdict] = weigh(Found([ROW]), create(server="berlin"))
    assert isinstance(verdict, Refusal)
    assert verdict.code == "unknown_server"


@pytest.mark.parametrize("server", ["", "Berlin", "https://berlin.example", "a" * 32, "-a", "a\n"])
def test_a_command_names_a_server_and_never_an_address(server: str) -> None:
    with pytest.raises(ValidationError):
        create(server=server)


def test_only_a_create_of_that_very_instance_is_stopped() -> None:
    older = replace(ROW, id=UUID(int=5), instance_name="the-older-one")
    [verdict] = weigh(Found([older], [CREATING]), delete(instance_name="the-older-one"))
    assert in_words(verdict) == "waits"
    follow = admitted(weigh(Found([], [CREATING]), delete())[0]).follow_up
    assert follow is not None
    assert follow.type == "saga.cancel"
    assert follow.data["saga_id"] == str(AHEAD)
    assert follow.data["if_possible"] is True


def test_a_create_has_a_deadline_and_a_delete_has_none() -> None:
    assert admitted(weigh(Found(), create())[0]).deadline_seconds == 900.0
    assert admitted(weigh(Found([ROW]), delete())[0]).deadline_seconds is None


class TestOneBatch:
    """Commands that are read together are weighed in their order, each seeing those before it."""

    @staticmethod
    def words(found: Found, commands: Sequence[Any]) -> list[str]:
        return [in_words(verdict) for verdict in weigh(found, *commands)]

    def test_a_create_and_its_delete(self) -> None:
        made, gone = weigh(Found(), create(instance_name=NAME), delete())
        assert in_words(made) == "begins"
        assert in_words(gone) == "waits, and stops it"
        assert admitted(gone).behind == COMER
        assert admitted(gone).facts["created_by"] == str(COMER)
        assert admitted(gone).facts["clinic_id"] == str(CLINIC)

    def test_a_delete_before_its_create(self) -> None:
        assert self.words(Found(), [delete(), create(instance_name=NAME)]) == [
            "not_found", "begins"
        ]  # fmt: skip

    def test_a_delete_and_the_next_create(self) -> None:
        assert self.words(Found([ROW]), [delete(), create()]) == ["begins", "in_progress"]

    def test_two_creates_and_two_deletes(self) -> None:
        commands = [create(instance_name=NAME), create(), delete(), delete()]
        verdicts = weigh(Found(), *commands)
        assert [in_words(v) for v in verdicts] == [
            "begins", "in_progress", "waits, and stops it", "waits"
        ]  # fmt: skip
        assert admitted(verdicts[3]).behind == UUID(int=COMER.int + 2)

    def test_what_it_claimed_itself_is_not_in_its_own_way(self) -> None:
        """The second look finds the rows that the batch has just inserted."""
        mine = replace(CREATING, saga_id=COMER, facts={})
        behind = replace(
            DELETING,
            saga_id=UUID(int=COMER.int + 1),
            business_key=f"{KEY}/behind/{COMER.int + 1}",
            behind=COMER,
            facts={},
        )
        commands = [create(instance_name=NAME), delete()]
        assert weigh(Found([], [mine, behind]), *commands) == weigh(Found(), *commands)

    def test_never_more_wait_than_may(self) -> None:
        words = self.words(Found([ROW]), [delete() for _ in range(LONGEST_QUEUE + 3)])
        assert words == ["begins"] + ["waits"] * LONGEST_QUEUE + ["in_progress"] * 2
