"""Names that older code gave its instances, by which an organization's leftovers are found.

A pattern is a name with ``*`` for anything and one ``{organization_id}`` or ``{clinic_id}``.
Without a birthmark the name is all there is to go by, so what it finds is only ever told, and
removed when somebody asks for exactly that organization.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from uuid import UUID

PLACEHOLDERS: Final = ("{organization_id}", "{clinic_id}")
PLACEHOLDERS_ANYWHERE: Final = tuple(f"*{one}*" for one in PLACEHOLDERS)
_UUID: Final = "([0-9a-fA-F]{8}(?:-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12})"


def compiled(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression whose one group is the id.

    Raises ``ValueError`` for one that would speak of no organization; the operator must mend it.
    """
    if sum(pattern.count(one) for one in PLACEHOLDERS) != 1:
        raise ValueError(f"{pattern!r} needs {PLACEHOLDERS[0]} or {PLACEHOLDERS[1]}, once")
    literal = re.escape(pattern).replace(r"\*", ".*")
    for placeholder in PLACEHOLDERS:
        literal = literal.replace(re.escape(placeholder), _UUID)
    return re.compile(literal, re.DOTALL)


def candidates(names: Iterable[str], patterns: Sequence[str]) -> dict[str, UUID]:
    """The names that fit, each with the organization or clinic that it seems to speak of."""
    known = [compiled(pattern) for pattern in patterns]
    found: dict[str, UUID] = {}
    for name in names:
        fit = next((match for one in known if (match := one.fullmatch(name))), None)
        if fit is not None:
            found[name] = UUID(fit[1])
    return found


def by_organization(
    candidates: Mapping[str, UUID], organizations: Iterable[UUID], clinics: Mapping[UUID, UUID]
) -> dict[str, UUID]:
    """Those that speak of an organization we know, or of a clinic of one."""
    known = set(organizations)
    found = {name: id_ if id_ in known else clinics.get(id_) for name, id_ in candidates.items()}
    return {name: organization for name, organization in found.items() if organization is not None}
