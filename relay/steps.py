"""Runs work that was cut into steps of a few milliseconds, without a pause.

Never: knows what the work is.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

Result = TypeVar("Result")


def at_once(steps: Generator[None, None, Result]) -> Result:
    """Take all steps now. Returns what they return, and raises what they raise."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: Result = done.value
            return result
