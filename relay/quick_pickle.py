"""Pickles of values that hold hundreds of paths and small records, in less time.

A frozen dataclass with slots looks up its fields for each object that is pickled or
unpickled, and Python 3.11 parses every part of a Path. With 500 routes this made turns
of the supervisor's loop of 25 to 35 ms.

Never: unpickles anything.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections.abc import Callable
from functools import cache, lru_cache
from operator import attrgetter
from pathlib import Path, PosixPath
from typing import Any

_PATHS = 8192  # kept by the process that unpickles; a configuration names fewer


class QuickPickle:
    """A dataclass with two slots or more that is pickled as a call of its class."""

    __slots__: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the class and the values of its fields."""
        return type(self), _reader(self.__slots__)(self)


@cache
def _reader(names: tuple[str, ...]) -> Callable[[object], tuple[Any, ...]]:
    """What reads these attributes, at least two, of an object."""
    first, *others = names
    return attrgetter(first, *others)


@lru_cache(_PATHS)
def path_of(text: str) -> Path:
    """The path that has this text; equal paths are one object."""
    return Path(text)


def _reduce_path(path: Path) -> tuple[Any, ...]:
    return path_of, (str(path),)


class _Pickler(pickle.Pickler):
    dispatch_table: Any = copyreg.dispatch_table | {PosixPath: _reduce_path}


def dumps(value: object) -> bytes:
    """The pickle of a value."""
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()
