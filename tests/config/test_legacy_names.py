"""Names of older code: which organization they speak of, if any."""

import uuid

import pytest

from evosaga.orchestrator.config.legacy_names import (
    PLACEHOLDERS_ANYWHERE,
    by_organization,
    candidates,
    compiled,
)

SOL = uuid.UUID("4e8ddba1-ad52-4613-9a03-ec64636b3f6c")
MAR = uuid.UUID("b7a1f0de-3c1e-4d37-9a55-0d2f5a3c9e10")


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        (f"clinic-{SOL}-1733000000", True),
        (f"{SOL}", True),
        (f"Clinic_{str(SOL).upper()}", True),
        (f"clinic-{SOL.hex}", True),
        ("clinic-sol", False),
        (f"clinic-{str(SOL)[:-1]}", False),
        ("", False),
    ],
)
def test_by_default_a_name_speaks_of_the_organization_whose_id_is_in_it(
    name: str, fits: bool
) -> None:
    assert candidates([name], PLACEHOLDERS_ANYWHERE) == ({name: SOL} if fits else {})


def test_a_pattern_of_your_own_is_taken_word_by_word() -> None:
    patterns = ["clinic-{organization_id}-*"]
    assert candidates([f"clinic-{SOL}-1", f"clinic-{SOL}", f"xclinic-{SOL}-1"], patterns) == {
        f"clinic-{SOL}-1": SOL
    }
    assert candidates([f"a+b{SOL}", f"aab{SOL}"], ["a+b{organization_id}"]) == {f"a+b{SOL}": SOL}


@pytest.mark.parametrize("pattern", ["", "clinic-*", "{organization_id}{organization_id}"])
def test_a_pattern_that_speaks_of_nobody_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="once"):
        compiled(pattern)


def test_only_organizations_that_we_know_count_by_their_own_id_or_by_that_of_a_clinic() -> None:
    found = {"one": SOL, "two": MAR, "three": uuid.uuid4()}
    assert by_organization(found, [SOL], {MAR: SOL}) == {"one": SOL, "two": SOL}
    assert by_organization(found, [], {}) == {}
