"""Files of the configuration that another user could change, or read although they are secret.

A CA that somebody else can replace lets in whom they like, and a configuration names files
that root opens. None of this is refused: who may do what is the operator's decision.

Never: opens a file, or raises for one that cannot be looked at.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path

from relay.config.key_path import pool_path
from relay.config.model import Config
from relay.supervisor.path_ownership import Doubt, doubt_of
from relay.tls.certificates.configured import authorities_of, pairs_of
from relay.tls.certificates.findings import Finding, Level


def check_owners(config: Config) -> list[Finding]:
    """One warning for every such step on the way to files, however many files lie behind it."""
    behind: dict[Doubt, dict[Path, list[str]]] = {}
    for where, file in _files_of(config):
        with contextlib.suppress(OSError):  # what cannot be reached is told where it is read
            if doubt := doubt_of(file):
                behind.setdefault(doubt, {}).setdefault(file, []).append(where)
    found = []
    for doubt, files in behind.items():
        file, wheres = next(iter(files.items()))
        more = (
            f" (so can {len(files) - 1} more files of the configuration)" if len(files) > 1 else ""
        )
        what = f"can be changed by another user: {doubt}{more}"
        places = ", ".join(dict.fromkeys(wheres))
        found.append(Finding(Level.WARNING, str(file), "", what, doubt.remedy, places))
    if (hashed := config.admin.password_file) is not None and _all_may_read(hashed):
        what = "every user of this machine can read this password or its hash"
        found.append(
            Finding(Level.WARNING, str(hashed), "", what, f"chmod o-r {hashed}", _PASSWORD)
        )
    return found


_PASSWORD = "admin.password_file"  # noqa: S105 (the name of a key)


def _files_of(config: Config) -> Iterator[tuple[str, Path]]:
    yield "configuration", config.source
    if config.admin.password_file is not None:
        yield _PASSWORD, config.admin.password_file
    for pair in pairs_of(config):
        yield pair.where, pair.certificate
        yield pair.where, pair.private_key
    for use in authorities_of(config):
        yield use.where, use.file
    for name, pool in config.pool.items():
        if pool.cookie_secret_file is not None:
            yield f"{pool_path(name)}.cookie_secret_file", pool.cookie_secret_file


def _all_may_read(file: Path) -> bool:
    with contextlib.suppress(OSError):
        return bool(file.stat().st_mode & stat.S_IROTH)
    return False
