"""Hooks of MkDocs: a link to a file that is no page of the site becomes plain text."""

import re
from typing import Any

NO_PAGE = re.compile(r"\[([^\]]+)\]\((?![a-z]+:|#)(?![^)]*\.(?:md|svg|png)[)#])[^)]*\)")
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:README|CHANGELOG|SECURITY|CONTRIBUTING)[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with each page's text."""
    return OUTSIDE.sub(r"\1", NO_PAGE.sub(r"\1", markdown))
