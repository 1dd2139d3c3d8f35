"""The plan, over every cell of its truth table and over every world that can be made of its words.

First the table itself: no cell without a verdict, none with two. Then worlds: every combination of
what each store may say is built as a snapshot, and whatever the plan answers is held against what
must never happen.
"""

import gc
import json
import uuid
from collections.abc import Iterator
from itertools import combinations, islice, product
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

import pytest

from evosaga.events.commands import Command
from evosaga.orchestrator.commands.accept import parse_request
from evosaga.orchestrator.whatsapp.reconciliation.classify import found, places_of, row_says
from evosaga.orchestrator.whatsapp.reconciliation.drift import Drift, reconcile_plan
from evosaga.orchestrator.whatsapp.reconciliation.incomplete_instances import KINDS
from evosaga.orchestrator.whatsapp.reconciliation.probes import needs_probe
from evosaga.orchestrator.whatsapp.reconciliation.rules import (
    AGREE,
    BUSY,
    KEY_RULES,
    RULES,
    Cell,
    KeyCell,
    judge_key,
    verdict_of,
)
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import (
    Instance,
    Keep,
    Memory,
    Origin,
    Row,
    Snapshot,
)
from evosaga.orchestrator.whatsapp.reconciliation.verdicts import VERDICTS
from evosaga.sagas.registry import discover

CATALOGUE = discover()
CellT = TypeVar("CellT", Cell, KeyCell)
ORGANIZATION = uuid.UUID("4e8ddba1-ad52-4613-9a03-ec64636b3f6c")
STRANGER = uuid.UUID("00000000-0000-4000-8000-0000000000ff")
MAKER = uuid.UUID("0197f3a0-0000-7000-8000-0000000000c1")
NAME = f"wa-{MAKER}"
OTHER = f"clinic-{ORGANIZATION}-2"
PHONE = "5511987654321"


def every(kind: type[CellT]) -> list[CellT]:
    """All cells that the words of each store make."""
    words = [get_args(words) for words in get_type_hints(kind).values()]
    return [kind(*cell) for cell in product(*words)]


class TestTheTable:
    def test_gives_every_cell_exactly_one_verdict(self) -> None:
        cells = list(every(Cell))
        assert len(cells) == len(set(cells)) == 2 * 6 * 4 * 8 * 4 * 3
        for cell in cells:
            assert sum(rule.covers(cell) for rule in RULES) == 1, cell

    def test_gives_every_cell_of_a_key_exactly_one_verdict(self) -> None:
        for cell in every(KeyCell):
            assert sum(rule.covers(cell) for rule in KEY_RULES) == 1, cell

    def test_knows_every_verdict_that_it_gives_and_gives_every_one_it_knows(self) -> None:
        given = {verdict_of(cell) for cell in every(Cell)} | {judge_key(c) for c in every(KeyCell)}
        assert given - {AGREE, BUSY} | {"named_twice", "elsewhere", *KINDS} == set(VERDICTS)

    def test_has_no_rule_that_never_applies(self) -> None:
        cells: list[Any] = [*every(Cell)]
        key_cells: list[Any] = [*every(KeyCell)]
        assert all(any(rule.covers(cell) for cell in cells) for rule in RULES)
        assert all(any(rule.covers(cell) for cell in key_cells) for rule in KEY_RULES)

    @pytest.mark.fault("n2")
    def test_does_nothing_about_a_name_that_a_saga_is_at_work_for(self) -> None:
        assert {verdict_of(cell) for cell in every(Cell) if cell.busy == "busy"} == {BUSY}
        assert {judge_key(c) for c in every(KeyCell) if c.busy == "busy"} == {BUSY}

    def test_never_touches_what_is_not_ours_unless_a_row_or_a_name_vouches_for_it(self) -> None:
        for cell in every(Cell):
            if cell.whose in ("stranger", "posing"):
                verdict = VERDICTS.get(verdict_of(cell))
                assert verdict is None or verdict.action not in ("remove", "adopt"), cell

    def test_only_tells_of_somebody_else_under_a_name_of_ours(self) -> None:
        cell = Cell("free", "paired", "posing", "none", "keep", "unknown")
        assert verdict_of(cell) == "impostor"
        assert VERDICTS["impostor"].policy == "never"
        assert verdict_of(cell._replace(whose="stranger")) == AGREE

    def test_never_removes_a_connected_phone_by_itself_unless_the_log_says_it_is_over(self) -> None:
        for cell in every(Cell):
            verdict = VERDICTS.get(verdict_of(cell))
            if verdict and verdict.action in ("remove", "delete") and cell.sight == "paired":
                assert verdict.policy != "auto" or cell.log == "ended", cell

    @pytest.mark.fault("e6")
    def test_only_tells_of_what_carries_our_token_and_is_not_in_the_log(self) -> None:
        cells = [c for c in every(Cell) if c.whose == "ours" and c.log == "unknown"]
        removed = {c for c in cells if c.row == "none" and verdict_of(c) not in (AGREE, BUSY)}
        assert {verdict_of(c) for c in removed} == {"unrecorded", "unanswered"}

    @pytest.mark.fault("n1")
    def test_removes_every_orphan_of_ours_that_is_over(self) -> None:
        for cell in every(Cell):
            there = cell.sight in ("half", "idle", "open", "paired")
            over = cell.whose == "ours" and cell.row == "none" and cell.log == "ended"
            if there and over and cell.busy == "free":
                verdict = VERDICTS[verdict_of(cell)]
                assert verdict.action == "remove"
                assert verdict.policy == "auto" or cell.place == "clear"

    @pytest.mark.fault("d9")
    def test_marks_a_row_whose_instance_is_gone_and_makes_no_new_one(self) -> None:
        for says in ("pending", "connected", "unnumbered", "disconnected"):
            cell = Cell("free", "absent", "ours", says, "keep", "alive")
            assert verdict_of(cell) == "missing"
        assert VERDICTS["missing"].action == "correct"
        assert (
            verdict_of(Cell("free", "absent", "ours", "flagged", "keep", "alive"))
            == "still_missing"
        )


# --- worlds ------------------------------------------------------------------------------------

LISTED = ("nothing", "closed", "connecting", "open", "open-without-phone", "passive")
TOKENS = ("ours", "unknown", "of-another-saga")
ROWS = ("none", "pending", "connected", "disconnected", "flagged", "deleting", "disabled", "odd")
MEMORY: tuple[Memory | None, ...] = (None, *get_args(Memory))
LOGS = ("alive", "ended", "unknown")
NEIGHBOURS = ("none", "older-connected", "older-closed")
KEEPS = (None, "connected", "none", NAME, OTHER)


class Words(NamedTuple):
    """One world, in words."""

    listed: str
    token: str
    row: str
    born: bool
    memory: Memory | None
    log: str
    neighbour: str
    keep: str | None
    busy: bool


def snapshot_of(words: Words) -> Snapshot:
    instances: dict[str, Instance] = {}
    origins: dict[uuid.UUID, Origin] = {}
    made_by = {"ours": MAKER, "unknown": None, "of-another-saga": STRANGER}[words.token]
    if words.listed != "nothing":
        instances[NAME] = Instance(
            NAME,
            {"closed": "close", "connecting": "connecting"}.get(words.listed, "open"),
            "0" * 16,
            passive=words.listed == "passive",
            phone=PHONE if words.listed in ("closed", "connecting", "open") else None,
            made_by=made_by,
            key_id="0a1b2c3d" if made_by else None,
        )
        if made_by and words.log != "unknown":
            origins[made_by] = Origin(words.log, ORGANIZATION)  # type: ignore[arg-type]
    rows = []
    if words.row != "none":
        says = {"flagged": "disconnected", "disabled": "connected", "odd": "active"}
        rows.append(
            Row(
                MAKER if words.born else uuid.UUID(int=7),
                ORGANIZATION,
                NAME,
                says.get(words.row, words.row),
                enabled=words.row != "disabled",
                born=words.born,
                flag="missing" if words.row == "flagged" else None,
            )
        )
    older: dict[str, uuid.UUID] = {}
    if words.neighbour != "none":
        open_ = words.neighbour == "older-connected"
        instances[OTHER] = Instance(
            OTHER, "open" if open_ else "close", "1" * 16, phone=PHONE if open_ else None
        )
        older[OTHER] = ORGANIZATION
    return Snapshot(
        instances=instances,
        memory={NAME: words.memory} if words.memory else {},
        rows=rows,
        origins=origins,
        older=older,
        ours_by_name=frozenset({NAME}),
        busy_names=frozenset({NAME}) if words.busy else frozenset(),
        keep=Keep(ORGANIZATION, words.keep) if words.keep else None,
    )


def every_world() -> Iterator[Words]:
    """Every combination that makes a difference."""
    for parts in product(
        LISTED, TOKENS, ROWS, (True, False), MEMORY, LOGS, NEIGHBOURS, KEEPS, (True, False)
    ):
        words = Words(*parts)
        same = (
            (words.listed == "nothing" and (words.token, words.log) != ("ours", "alive"))
            or (words.token == "unknown" and words.log != "alive")
            or (words.row == "none" and words.born)
            or (words.busy and (words.keep is not None or words.neighbour != "none"))
        )
        if not same:
            yield words


World = tuple[Words, Snapshot, list[Drift]]


# Eleven has no part in any of the numbers of words, so all of them meet in a sample as well.
@pytest.fixture(scope="module", params=[11, pytest.param(1, marks=pytest.mark.long)])
def planned(request: pytest.FixtureRequest) -> Iterator[list[World]]:
    """One world in eleven, and all of them where there is time for it."""
    gc.disable()  # all of it is kept, and to look for cycles in it is a third of the time
    try:
        some = islice(every_world(), 0, None, request.param)
        snapshots = ((words, snapshot_of(words)) for words in some)
        yield [(*world, reconcile_plan(world[1])) for world in snapshots]
    finally:
        gc.enable()


def removals(drifts: list[Drift]) -> dict[str, Drift]:
    return {d.where: d for d in drifts if d.command and d.command.type == "instance.remove"}


class TestEveryWorld:
    def test_has_any_two_words_in_it(self, planned: list[World]) -> None:
        """So that a sample of them leaves out nothing that is a matter of one word or of two."""
        every = list(zip(*every_world(), strict=True))
        some = list(zip(*(words for words, _, _ in planned), strict=True))
        for one, other in combinations(range(len(every)), 2):
            pairs, sampled = (set(zip(it[one], it[other], strict=True)) for it in (every, some))
            assert pairs == sampled

    def test_is_answered_with_at_most_one_verdict_a_name(self, planned: list[World]) -> None:
        assert len(planned) > 5_000
        for words, _, drifts in planned:
            assert len({drift.where for drift in drifts}) == len(drifts), words

    def test_says_what_the_table_says(self, planned: list[World]) -> None:
        for words, snapshot, drifts in planned:
            rows = snapshot.named()
            names = {n: found(snapshot, n, rows.get(n)) for n in {*snapshot.instances, *rows}}
            places, _ = places_of(snapshot, names)
            for name, one in names.items():
                cell = Cell(
                    "busy" if name in snapshot.busy_names else "free",
                    one.sight,
                    one.whose,
                    row_says(one.row, one.instance),
                    places.get(name, "spare"),
                    one.log,
                )
                said = [drift.what for drift in drifts if drift.where == name]
                verdict = verdict_of(cell)
                assert said == ([] if verdict in (AGREE, BUSY) else [verdict]), words

    def test_has_repairs_that_the_sagas_understand(self, planned: list[World]) -> None:
        seen: set[str] = set()
        for words, _, drifts in planned:
            for drift in drifts:
                if drift.command is None:
                    continue
                said = json.dumps([drift.command.type, dict(drift.command.data)], sort_keys=True)
                if said not in seen:
                    seen.add(said)
                    command = Command("id", drift.command.type, dict(drift.command.data))
                    assert parse_request(CATALOGUE, command).input, words
        assert len(seen) > 20

    @pytest.mark.fault("s8")
    def test_removes_only_what_it_can_recognise_again(self, planned: list[World]) -> None:
        for words, _, drifts in planned:
            for drift in removals(drifts).values():
                assert drift.command is not None
                data = drift.command.data
                assert ("token_hash" in data) != ("created_by" in data and "key_id" in data), words
                if words.token == "unknown" and drift.where == NAME and words.row == "none":
                    raise AssertionError(f"a stranger's instance would be removed: {words}")

    def test_leaves_a_name_alone_that_a_saga_is_at_work_for(self, planned: list[World]) -> None:
        for words, _, drifts in planned:
            if words.busy:
                assert not [drift for drift in drifts if drift.where == NAME], words

    def test_never_removes_by_itself_what_a_row_names(self, planned: list[World]) -> None:
        for words, _, drifts in planned:
            for drift in removals(drifts).values():
                if drift.where == NAME and words.row not in ("none", "disabled"):
                    assert drift.policy == "ask", words

    def test_touches_older_instances_only_when_somebody_asks(self, planned: list[World]) -> None:
        for words, _, drifts in planned:
            for drift in drifts:
                if drift.where == OTHER:
                    assert drift.policy in ("ask", "never"), words

    def test_keeps_what_a_person_chose_to_keep(self, planned: list[World]) -> None:
        for words, _, drifts in planned:
            chosen = removals(drifts).get(words.keep or "")
            if chosen is not None:
                # Nobody can choose what the log says is over; what it never heard of is another
                # word once somebody chooses it, and is removed by its own name only.
                over = chosen.what in ("orphan", "unrecorded")
                assert over or words.memory in ("half", "absent"), words

    def test_adopts_only_into_the_organizations_own_row(self, planned: list[World]) -> None:
        for words, snapshot, drifts in planned:
            for drift in drifts:
                if drift.command is None or drift.command.type != "instance.adopt":
                    continue
                data = drift.command.data
                ids = {str(row.id) for row in snapshot.rows if row.enabled}
                if ids or drift.what != "unnamed":
                    ids = ids or {str(MAKER)}
                    assert data["integration_id"] in ids | {str(STRANGER)}, words
                else:
                    assert data["channel"], f"a row of its own is made: {words}"
                assert data["organization_id"] == str(ORGANIZATION), words

    def test_a_clean_slate_leaves_nothing_that_belongs_to_the_organization(
        self, planned: list[World]
    ) -> None:
        for words, _, drifts in planned:
            if words.keep != "none" or words.busy or words.memory == "unanswered":
                continue
            sent = {d.where: d.command.type for d in drifts if d.command}
            if words.neighbour != "none":
                assert sent[OTHER] == "instance.remove", words
            unsure = words.listed == "nothing" and words.memory in ("open", "connecting", "close")
            if words.row not in ("none", "disabled") and not unsure:
                assert sent[NAME] == "integration.delete", words

    def test_tells_the_suspects_whose_memory_decides(self, planned: list[World]) -> None:
        for words, snapshot, drifts in planned[:: 1 + len(planned) // 10_000]:
            assert set(needs_probe(snapshot)) == {d.where for d in drifts if d.command}, words
