"""The updates that workers of older generations get, as another version may know them.

They are pickles of this program's classes. After an upgrade, the workers of the version
before understand them if both versions have the same classes: `fingerprint` says so.

Never: reads or writes an update.
"""

from __future__ import annotations

import hashlib
import sys
import typing
from collections.abc import Iterator
from enum import Enum
from functools import cache

from relay.tls.trust_update import TrustUpdate
from relay.worker.drain import DrainUpdate
from relay.worker.kicked import KickUpdate

# Change it when a message means something else and its fields stay.
MEANING = 2
MESSAGES = (TrustUpdate, KickUpdate, DrainUpdate)


@cache
def fingerprint() -> str:
    """The same in two programs whose workers understand each other's supervisor."""
    classes: dict[str, list[str]] = {}
    for message in MESSAGES:
        _describe(message, classes)
    text = repr((MEANING, sys.version_info[:2], sorted(classes.items())))
    return hashlib.sha256(text.encode()).hexdigest()


def _describe(hint: object, classes: dict[str, list[str]]) -> None:
    """Add this class of the relay's and those of its fields, or those of a hint."""
    for each in typing.get_args(hint):
        _describe(each, classes)
    if not isinstance(hint, type) or not hint.__module__.startswith("relay."):
        return
    name = f"{hint.__module__}.{hint.__qualname__}"
    if name in classes:
        return
    classes[name] = []
    for field, inner in _fields(hint):
        classes[name].append(f"{field}: {inner}")
        _describe(inner, classes)


def _fields(described: type) -> Iterator[tuple[str, object]]:
    if issubclass(described, Enum):
        yield from ((each.name, each.value) for each in described)
    else:
        yield from typing.get_type_hints(described).items()
