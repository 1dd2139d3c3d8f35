"""The indexes of revision 0010: what finds an integration or a saga by what people know of it.

Words are lexemes of a ``tsvector`` that is put together by hand, so that the beginning of a word,
of an id or of a phone number finds it. No extension is needed, and no function of ours: an index on
a table that others write to must need no right that they lack. Numbers and instance names stand
there backwards as well, since their end is what people know or see of them.

What is typed is made into the same words in ``orchestrator/whatsapp/integrations/words.py``.
"""

from typing import Final, NamedTuple

ACCENTED: Final = "áàâãäåçéèêëíìîïñóòôõöúùûüýÁÀÂÃÄÅÇÉÈÊËÍÌÎÏÑÓÒÔÕÖÚÙÛÜÝ–—·•’“”"
PLAIN: Final = "aaaaaaceeeeiiiinooooouuuuyaaaaaaceeeeiiiinooooouuuuy       "
BETWEEN_WORDS: Final = r"[\s!-/:-@\[-`{-~]+"
"""Blanks and the punctuation of ASCII; all else is part of a word."""
ID: Final = "="
ID_BACKWARDS: Final = "~"
NUMBER: Final = "+"
NUMBER_BACKWARDS: Final = "#"
"""What no word begins with: they mark an id and a number, so that no letter of a name finds one."""


SERVER: Final = "coalesce(nullif({0}config ->> 'server', ''), 'default')"
"""The Evolution server of a row of ``healthcare.integrations``, whose alias and dot go in front."""


class SearchIndex(NamedTuple):
    """An index. ``made`` is everything after its name in CREATE INDEX."""

    schema: str
    name: str
    made: str

    @property
    def table(self) -> str:
        """What it is on."""
        return self.made.split()[1]


def _words(text: str) -> str:
    plain = f"translate(lower(left(coalesce({text}, ''), 200)), '{ACCENTED}', '{PLAIN}')"
    return f"regexp_split_to_array({plain}, '{BETWEEN_WORDS}')"


def _digits(text: str) -> str:
    return f"regexp_replace(left({text}, 40), '[^0-9]', '', 'g')"


def _lexemes(words: list[str], whole: list[str], number: str) -> str:
    digits = _digits(number)
    whole += [
        f"'{NUMBER}' || nullif({digits}, '')",
        f"'{NUMBER_BACKWARDS}' || nullif(reverse({digits}), '')",
    ]
    every = f"{' || '.join(map(_words, words))} || ARRAY[{', '.join(whole)}]"
    return f"array_to_tsvector(array_remove(array_remove({every}, ''), NULL))"


def _id(text: str) -> str:
    return f"'{ID}' || lower(left({text}, 100))"


def _chosen(name: str) -> str:
    """The name of an instance unless it was derived from an id, which is a word by itself."""
    return f"CASE WHEN {name} NOT LIKE '{_DERIVED}' THEN {name} END"


_DERIVED: Final = "wa-________-____-____-____-____________"
_NAME: Final = "config ->> 'instance_name'"
INTEGRATION_WORDS: Final = _lexemes(
    ["config ->> 'name'", _chosen(f"({_NAME})")],
    [
        *(_id(_NAME), f"'{ID_BACKWARDS}' || reverse(lower(left({_NAME}, 100)))"),
        f"'{ID}' || nullif('wa-' || id::text, {_NAME})",
        *(f"'{ID}' || organization_id::text", _id("config ->> 'clinic_id'")),
    ],
    "whatsapp_number::text",
)
"""Of a row of ``healthcare.integrations``."""


def _of_start(input_: str, name: str) -> str:
    return _lexemes([f"{input_} ->> 'name'", _chosen(name)], [], f"{input_} ->> 'number'")


START_WORDS: Final = _of_start("(data -> 'input')", "(data ->> 'instance_name')")
"""Of the event that began a saga: by them one is found that left no integration behind."""
STARTS_VIEW_WORDS: Final = _of_start("input", "instance_name")
"""The same of a row of the view ``evosaga.saga_starts``."""
AGE: Final = "coalesce(created_at, 'epoch')"
TITLE: Final = "lower(left(coalesce(config ->> 'name', config ->> 'instance_name', ''), 200))"
"""What integrations are sorted by."""
WELL: Final = "('connected', 'pending', 'incomplete')"
"""States of a connection in which no phone needs attention."""
_OURS: Final = "WHERE type = 'whatsapp' AND provider = 'evolution'"

_ROWS: Final = "ON healthcare.integrations"
INDEXES: Final = (
    SearchIndex(
        "healthcare",
        "integrations_by_words",
        # Without a list of pending entries, through which every search would have to look.
        f"{_ROWS} USING gin (({INTEGRATION_WORDS})) WITH (fastupdate = off)",
    ),
    SearchIndex("healthcare", "integrations_newest", f"{_ROWS} (({AGE}) DESC, id DESC) {_OURS}"),
    SearchIndex("healthcare", "integrations_by_title", f"{_ROWS} (({TITLE}), id) {_OURS}"),
    SearchIndex("healthcare", "integrations_by_status", f"{_ROWS} (status) {_OURS}"),
    SearchIndex(
        "evosaga",
        "connections_in_need",
        f"ON evosaga.connections (integration_id) WHERE state NOT IN {WELL}",
    ),
    SearchIndex(
        "evosaga",
        "saga_starts_by_words",
        # No pending list: its flush would fall to an append, which holds the lock of all appends.
        f"ON evosaga.saga_events USING gin (({START_WORDS})) WITH (fastupdate = off) "
        "WHERE sequence = 0 AND type = 'saga.started'",
    ),
    SearchIndex(
        "evosaga",
        "sagas_by_tail",
        "ON evosaga.sagas ((reverse(saga_id::text)) text_pattern_ops)",
    ),
    SearchIndex(
        "evosaga",
        "sagas_by_beginning_of_command",
        "ON evosaga.sagas (command_id text_pattern_ops) WHERE command_id <> saga_id::text",
    ),
)

SCALE_INDEXES: Final = (
    SearchIndex(
        "healthcare", "integrations_by_server", f"{_ROWS} (({SERVER.format('')}), id) {_OURS}"
    ),
    SearchIndex(
        "evosaga",
        "connections_alerted",
        "ON evosaga.connections (state) WHERE alerted_at IS NOT NULL",
    ),
    SearchIndex("evosaga", "sagas_due", "ON evosaga.sagas (due_at) WHERE due_at IS NOT NULL"),
    SearchIndex(
        "evosaga",
        "sagas_waiting_since",
        "ON evosaga.sagas (waits_since) WHERE waits_since IS NOT NULL",
    ),
)
"""Those of revision 0012: a server's rows in pages, the phones that somebody was told of, and what
no worker drives by when it is due."""


def made(index: SearchIndex) -> str:
    """The statement that makes it where it is missing."""
    return f"CREATE INDEX IF NOT EXISTS {index.name} {index.made}"
