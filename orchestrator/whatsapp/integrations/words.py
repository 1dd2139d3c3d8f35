"""What people type to find something, as a query for the indexes of ``search_indexes``. Pure.

A name is found by the beginnings of its words, in any order and without accents; an id by its
beginning, or by its end as pages show it; a phone number by its beginning or end, however it is
written, in Brazil with and without the ninth digit, which WhatsApp leaves out of older numbers.
"""

import re
from typing import Final

from evosaga.migrations.search_indexes import (
    ACCENTED,
    BETWEEN_WORDS,
    ID,
    ID_BACKWARDS,
    NUMBER,
    NUMBER_BACKWARDS,
    PLAIN,
)

LONGEST: Final = 120
"""Characters of a search that count."""
SHORTEST: Final = 2
_LETTERS: Final = str.maketrans(ACCENTED, PLAIN)
_NUMBER: Final = re.compile(r"[\d\s+().\-/]+")
_ID: Final = re.compile(r"[0-9a-f]{2,8}(-[0-9a-f-]{0,28})?|[0-9a-f-]{4,36}|[0-9a-f]{32}")
_LEAST_DIGITS: Final = 3
_LEAST_END: Final = 4


def tidy(text: str) -> str:
    """What was typed, without blanks around it and without the mark of an id that is cut short."""
    return " ".join(text.replace("\0", "").split()).strip("….").strip()[:LONGEST]


def words_of(text: str) -> list[str]:
    """The words of a name, as the index has them."""
    return [word for word in re.split(BETWEEN_WORDS, text.lower().translate(_LETTERS)) if word]


def query(text: str) -> str | None:
    """The ``tsquery`` that finds it; None when it is too short to look for."""
    text = tidy(text)
    if len(text) < SHORTEST:
        return None
    whole = text.lower()
    words = words_of(text)
    if words[:1] == ["wa"] and (whole == "wa" or hexadecimal(text)):
        words = []  # of nearly every instance's name, which is looked for as a whole
    found = [f"({' & '.join(map(_begins, words))})"] if words else []
    if " " not in whole and whole not in ("wa", "wa-"):
        found.append(_begins(ID + whole))
        if _ID.fullmatch(whole):
            found.append(_begins(f"{ID}wa-{whole}"))
        if len(whole) >= _LEAST_END:
            found.append(_begins(ID_BACKWARDS + whole[::-1]))
    for digits in _numbers(text):
        found += [_begins(NUMBER + digits), _begins(NUMBER_BACKWARDS + digits[::-1])]
    return " | ".join(dict.fromkeys(found)) or None


def _begins(word: str) -> str:
    quoted = word.replace("\\", "\\\\").replace("'", "''")
    return f"'{quoted}':*"


def _numbers(text: str) -> list[str]:
    """The digits of a phone number, in both of the ways in which Brazil writes it."""
    digits = re.sub(r"[^0-9]", "", text)
    if not _NUMBER.fullmatch(text) or len(digits) < _LEAST_DIGITS:
        return []
    found = [digits]
    if len(digits) >= 11 and digits[-9] == "9":
        found.append(digits[:-9] + digits[-8:])
    elif len(digits) in (10, 12):
        found.append(f"{digits[:-8]}9{digits[-8:]}")
    return found


def hexadecimal(text: str) -> str | None:
    """The beginning of a UUID, without what stands before and between its digits; else None."""
    digits = tidy(text).lower().removeprefix("wa-").replace("-", "")
    fits = re.fullmatch(r"[0-9a-f]{4,32}", digits)
    return digits if fits else None
