"""The paths and patterns of sections, such as <Location>.

Never: looks at what a section has inside.
"""

from __future__ import annotations

import re

from relay.importer.tree import Directive


def path_of(section: Directive) -> str:
    """The path of a <Location>, as a pattern for <LocationMatch>."""
    args = [each for each in section.args if each != "~"]
    return args[0] if args else ""


def is_every_path(text: str) -> bool:
    """Whether a path or pattern stands for all requests."""
    return re.sub(r"[\^$()]|\.\*|/\?", "", text) in {"", "/"}


def may_match(pattern: str, *texts: str) -> bool:
    """Whether it matches one of the texts. Yes, if it might take long to find out."""
    if (
        len(pattern) > 200
        or len(re.findall(r"[*+{]", pattern)) > 4
        or re.search(r"\)[*+{]", pattern)
    ):
        return True
    try:
        return any(re.search(pattern, each) for each in texts)
    except (re.error, RecursionError, OverflowError):
        return True
