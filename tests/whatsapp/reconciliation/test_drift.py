"""The plan, one case at a time: what people would ask about."""

import uuid
from dataclasses import replace
from typing import Any

import pytest

from evosaga.orchestrator.whatsapp.reconciliation.drift import (
    reconcile_plan,
)
from evosaga.orchestrator.whatsapp.reconciliation.plausibility import implausibility, too_many
from evosaga.orchestrator.whatsapp.reconciliation.rules import AGREE, KeyCell, judge_key
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import (
    Instance,
    Keep,
    Key,
    Memory,
    Origin,
    Row,
    Snapshot,
)

ORGANIZATION = uuid.UUID("4e8ddba1-ad52-4613-9a03-ec64636b3f6c")
STRANGER = uuid.UUID("00000000-0000-4000-8000-0000000000ff")
MAKER = uuid.UUID("0197f3a0-0000-7000-8000-0000000000c1")
NAME = f"wa-{MAKER}"
OTHER = f"clinic-{ORGANIZATION}-2"
PHONE = "5511987654321"


def test_a_row_that_lost_its_phone_number_gets_it_again() -> None:
    row = Row(MAKER, ORGANIZATION, NAME, "connected", born=True)
    instance = Instance(NAME, "open", "0" * 16, phone=PHONE, made_by=MAKER, key_id="0a1b2c3d")
    world = Snapshot(instances={NAME: instance}, rows=[row])
    [drift] = reconcile_plan(world)
    assert drift.what == "wrong_status"
    assert drift.command is not None
    assert drift.command.data["whatsapp_number"] == PHONE
    rows = [replace(row, number="+55 (11) 98765-4321")]
    assert reconcile_plan(replace(world, rows=rows)) == []


def test_an_integration_without_a_phone_may_be_pending_until_the_next_health_check() -> None:
    row = Row(MAKER, ORGANIZATION, NAME, "pending", born=True, fresh=True)
    instance = Instance(NAME, "open", "0" * 16, passive=True, made_by=MAKER, key_id="0a1b2c3d")
    world = Snapshot(instances={NAME: instance}, rows=[row])
    assert reconcile_plan(world) == []
    later = replace(world, rows=[replace(row, fresh=False)])
    assert [drift.what for drift in reconcile_plan(later)] == ["wrong_status"]
    paired = {NAME: replace(instance, passive=False, phone=PHONE)}
    drifts = reconcile_plan(replace(world, instances=paired))
    assert [drift.what for drift in drifts] == ["wrong_status"]


def test_a_connected_instance_is_contested_when_there_is_another_and_no_row_chooses() -> None:
    instances = {
        name: Instance(name, "open", "0" * 16, phone=PHONE) for name in (OTHER, f"{OTHER}0")
    }
    world = Snapshot(instances=instances, older=dict.fromkeys(instances, ORGANIZATION))
    assert [drift.what for drift in reconcile_plan(world)] == ["contested", "contested"]
    chosen = reconcile_plan(replace(world, keep=Keep(ORGANIZATION, OTHER)))
    assert {d.where: d.what for d in chosen} == {OTHER: "unnamed", f"{OTHER}0": "older_orphan"}
    row = Row(uuid.uuid4(), ORGANIZATION, OTHER, "connected", number=PHONE)
    named = reconcile_plan(replace(world, rows=[row]))
    assert {d.where: d.what for d in named} == {f"{OTHER}0": "older_orphan"}


def test_the_connected_one_is_kept_and_the_one_the_row_names_goes_after_it() -> None:
    instances = {
        OTHER: Instance(OTHER, "open", "0" * 16, phone=PHONE),
        f"{OTHER}0": Instance(f"{OTHER}0", "close", "1" * 16),
    }
    row = Row(uuid.uuid4(), ORGANIZATION, f"{OTHER}0", "pending")
    world = Snapshot(instances=instances, rows=[row], older={OTHER: ORGANIZATION})
    drifts = {drift.where: drift for drift in reconcile_plan(world)}
    assert drifts[OTHER].what == "unnamed"
    assert drifts[f"{OTHER}0"].what == "superseded"
    assert OTHER in drifts[f"{OTHER}0"].cause
    assert (drifts[OTHER].waits, drifts[f"{OTHER}0"].waits) == (False, True)


def test_two_rows_that_name_one_instance_are_told_of() -> None:
    instance = Instance(OTHER, "open", "0" * 16, phone=PHONE)
    rows = [
        Row(uuid.UUID(int=1), ORGANIZATION, OTHER, "connected", number=PHONE),
        Row(uuid.UUID(int=2), STRANGER, OTHER, "connected", number=PHONE),
    ]
    [drift] = reconcile_plan(Snapshot(instances={OTHER: instance}, rows=rows))
    assert (drift.what, drift.organization_id, drift.policy) == ("named_twice", STRANGER, "never")


@pytest.mark.parametrize("name", ["Clinic X", "x?instanceName=y", "UPPER"])
def test_a_name_that_only_has_to_be_encoded_is_mended_as_any_other(name: str) -> None:
    instance = Instance(name, "close", "0" * 16)
    [drift] = reconcile_plan(Snapshot(instances={name: instance}, older={name: ORGANIZATION}))
    assert drift.policy == "ask"
    assert drift.command is not None
    assert drift.command.data["instance_name"] == name


@pytest.mark.parametrize("name", ["a/../b", "con\nn", "..", "__proto__"])
def test_a_name_that_is_not_safe_in_an_address_is_left_to_people(name: str) -> None:
    instance = Instance(name, "close", "0" * 16)
    world = Snapshot(instances={name: instance}, older={name: ORGANIZATION})
    [drift] = reconcile_plan(world)
    assert (drift.policy, drift.command) == ("never", None)
    assert "by hand" in drift.repair


class TestKeys:
    row = Row(MAKER, ORGANIZATION, NAME, "connected", clinic_id=str(STRANGER), born=True)
    right = Key(NAME, str(ORGANIZATION), str(STRANGER))

    @pytest.mark.fault("f8")
    @pytest.mark.parametrize(
        ("key", "what"),
        [
            (right, None),
            (replace(right, organization_id=str(STRANGER)), "key_wrong"),
            (replace(right, clinic_id=str(ORGANIZATION)), "key_wrong"),
            (Key(NAME, None, None, readable=False), "key_unreadable"),
            (replace(right, expires=False), "key_eternal"),
            (Key("wa-nobody", str(ORGANIZATION), str(STRANGER)), "key_left"),
        ],
    )
    def test_a_key_that_says_what_is_not_so_is_dropped(self, key: Key, what: str | None) -> None:
        instance = Instance(NAME, "open", "0" * 16, passive=True, made_by=MAKER, key_id="0a1b2c3d")
        world = Snapshot(
            instances={NAME: instance},
            rows=[self.row],
            keys=[key],
            origins={MAKER: Origin("alive", ORGANIZATION)},
        )
        drifts = reconcile_plan(world)
        assert [drift.what for drift in drifts] == ([what] if what else [])
        assert all(drift.command and drift.command.type == "key.drop" for drift in drifts)
        busy = replace(world, busy_names=frozenset({key.instance_name}))
        assert reconcile_plan(busy) == []

    def test_the_key_of_a_disabled_row_leads_nowhere(self) -> None:
        rows = [replace(self.row, enabled=False)]
        [drift] = reconcile_plan(Snapshot(rows=rows, keys=[self.right]))
        assert drift.what == "key_left"

    def test_a_missing_key_is_no_drift_since_whoever_misses_it_fills_it(self) -> None:
        assert judge_key(KeyCell("free", "none", "enabled")) == AGREE


class TestHaste:
    """N4: what vanishes by the dozen did not vanish one by one."""

    @staticmethod
    def world(rows: int, listed: int, **memory: Memory) -> Snapshot:
        made = [
            Row(uuid.UUID(int=n), uuid.UUID(int=1000 + n), f"older-{n}", "connected", number=PHONE)
            for n in range(rows)
        ]
        shown = [row.instance_name for row in made[:listed]]
        return Snapshot(
            instances={n: Instance(n, "open", "0" * 16, phone=PHONE) for n in shown},
            rows=made,
            memory={name.replace("_", "-"): said for name, said in memory.items()},
        )

    @pytest.mark.fault("n4")
    def test_an_empty_list_is_not_believed(self) -> None:
        assert implausibility(self.world(10, 0))
        assert implausibility(self.world(4, 0))

    @pytest.mark.fault("n4")
    def test_a_list_that_lacks_more_than_a_fifth_is_not_believed(self) -> None:
        assert implausibility(self.world(100, 79))
        assert implausibility(self.world(100, 80)) is None
        assert implausibility(self.world(10, 7)) is None
        assert implausibility(self.world(10, 6))

    @pytest.mark.fault("n4")
    def test_it_is_believed_when_each_that_is_missing_was_asked_for_and_is_gone(self) -> None:
        gone: dict[str, Any] = {f"older_{n}": "absent" for n in range(10)}
        assert implausibility(self.world(10, 0, **gone)) is None
        assert implausibility(self.world(10, 0, **(gone | {"older_9": "open"})))
        assert implausibility(self.world(10, 0, **(gone | {"older_9": "unanswered"})))
        del gone["older_9"]
        assert implausibility(self.world(10, 0, **gone))

    @pytest.mark.fault("n4")
    def test_rows_that_sagas_are_at_work_for_or_that_are_known_to_be_ill_do_not_count(
        self,
    ) -> None:
        world = self.world(10, 6)
        missing = [row.instance_name for row in world.rows[6:]]
        assert implausibility(replace(world, busy_names=frozenset(missing))) is None
        flagged = [*world.rows[:6], *(replace(row, flag="missing") for row in world.rows[6:])]
        assert implausibility(replace(world, rows=flagged)) is None

    def test_rows_that_vanish_by_the_dozen_are_not_taken_for_deleted(self) -> None:
        def world(rowless: int, ours: int) -> Snapshot:
            ids = [uuid.UUID(int=n + 1) for n in range(ours)]
            instances = {
                f"wa-{id_}": Instance(f"wa-{id_}", "close", "0" * 16, made_by=id_, key_id="0" * 8)
                for id_ in ids
            }
            rows = [
                Row(id_, uuid.UUID(int=1000 + n), f"wa-{id_}", "pending", born=True)
                for n, id_ in enumerate(ids[rowless:])
            ]
            origins = {id_: Origin("alive", None) for id_ in ids}
            return Snapshot(instances=instances, rows=rows, origins=origins)

        assert {d.policy for d in reconcile_plan(world(3, 10))} == {"auto"}
        assert {d.policy for d in reconcile_plan(world(4, 10))} == {"ask"}
        assert {d.policy for d in reconcile_plan(world(20, 100))} == {"auto"}
        [cause] = {d.cause for d in reconcile_plan(world(21, 100))}
        assert "has the table been emptied?" in cause

    def test_a_few_are_never_too_many(self) -> None:
        assert not too_many(3, 3)
        assert too_many(4, 4)
        assert not too_many(0, 0)
