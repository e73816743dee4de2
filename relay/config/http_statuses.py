"""Lists of HTTP statuses: "200-399", "200, 204, 300-399".

Never: knows what a status means.
"""

from __future__ import annotations

import re

_PART = re.compile(r"\s*([1-5][0-9]{2})(?:\s*-\s*([1-5][0-9]{2}))?\s*")

Statuses = tuple[tuple[int, int], ...]
"""Ranges; both ends are included."""


def parse_statuses(text: str) -> Statuses:
    """The ranges in a text. Raises ValueError that continues the quoted text."""
    ranges = []
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError("is not a list of HTTP statuses")
        first, last = int(match[1]), int(match[2] or match[1])
        if first < 200:
            raise ValueError("has a status below 200, which is never final")
        if last < first:
            raise ValueError(f"has a range that ends before it begins: {first}-{last}")
        ranges.append((first, last))
    return tuple(ranges)


def has_status(statuses: Statuses, status: int) -> bool:
    """Whether a status is in one of the ranges."""
    return any(first <= status <= last for first, last in statuses)
