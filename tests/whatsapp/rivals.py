"""What is to happen when one command meets another, as a table for people.

Read by two tests: the pure one asks the function that decides, the other publishes commands and
looks at what has become of the stores.
"""

from typing import Final

TABLE: Final = """
there                                | create             | namesake   | delete
nothing                              | begins             | begins     | not_found
an integration                       | integration_exists | name_taken | begins
a create on its way                  | in_progress        | name_taken | waits, and stops it
a create past its point of no return | in_progress        | name_taken | waits, and stops it
a create being undone                | in_progress        | name_taken | waits
a parked create                      | in_progress        | name_taken | in_progress
a delete on its way                  | in_progress        | name_taken | waits
a parked delete                      | in_progress        | name_taken | in_progress
another saga on its way              | in_progress        | name_taken | waits
another saga, parked                 | in_progress        | name_taken | in_progress
a full queue                         | in_progress        | name_taken | in_progress
"""
"""``create`` is one of the same organization, ``namesake`` one of another that wants the same
instance name, ``delete`` one of that instance. A cell says what becomes of the command: a code is
that of its rejection. To stop a create that is past its point of no return is tried in vain: it
completes, and then it is deleted."""


def lines() -> dict[str, dict[str, str]]:
    """``what is there -> what comes -> what happens``."""
    head, *rows = [
        [cell.strip() for cell in line.split("|")] for line in TABLE.strip().splitlines()
    ]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}
