"""Warns about files of the configuration that other users can change or read.

A user who can replace a CA file decides which clients are admitted. A user who can
replace the configuration chooses files that root opens. This is a warning, not an
error: the operator may trust that user.

Never: opens a file, or raises an error for a file that cannot be examined.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path

from relay.config.key_path import pool_path, routes_of
from relay.config.load import Loaded
from relay.config.model import Config
from relay.credentials import shown
from relay.supervisor.path_ownership import WeakStep, find_weak_step
from relay.tls.certificates.configured import authorities_of, pairs_of
from relay.tls.certificates.findings import Finding, Level
from relay.tls.certificates.passphrase import passphrase_key
from relay.tls.revocation.trust_sets import trust_sets_of


def check_owners(loaded: Loaded) -> list[Finding]:
    """One warning for each weak step, even if it leads to many files."""
    config = loaded.config
    files_by_step: dict[WeakStep, dict[Path, list[str]]] = {}
    for where, file in (*_configuration(loaded), *_files_of(config)):
        with contextlib.suppress(OSError):  # reading the file reports this error
            if weak := find_weak_step(file):
                files_by_step.setdefault(weak, {}).setdefault(file, []).append(where)
    found = []
    for weak, files in files_by_step.items():
        file, wheres = next(iter(files.items()))
        others = len(files) - 1
        more = f" (also {others} more files of the configuration)" if others else ""
        what = f"can be changed by another user: {weak}{more}"
        paths = ", ".join(dict.fromkeys(wheres))
        found.append(Finding(Level.WARNING, shown(file), "", what, weak.remedy, paths))
    password = config.admin.password_file
    if password is not None and _everyone_may_read(password):
        what = "every user of this machine can read this password or its hash"
        found.append(
            Finding(Level.WARNING, shown(password), "", what, f"chmod o-r {password}", _PASSWORD)
        )
    return found


_PASSWORD = "admin.password_file"  # noqa: S105 (the name of a key)


def _configuration(loaded: Loaded) -> Iterator[tuple[str, Path]]:
    for file in (*loaded.places.files, *loaded.places.value_files):
        yield "configuration", file
    for directory in loaded.directories:  # a new file in it would be included
        yield "include", directory


def _files_of(config: Config) -> Iterator[tuple[str, Path]]:
    if config.admin.password_file is not None:
        yield _PASSWORD, config.admin.password_file
    for pair in pairs_of(config):
        certificate, private_key, passphrase = pair.files
        yield pair.where, certificate
        yield pair.key_where, private_key
        if passphrase is not None:
            yield passphrase_key(pair.where), passphrase
    for use in authorities_of(config):
        yield use.where, use.file
    # A list is signed, but a user who can replace it can bring back an older one.
    for trust_set in trust_sets_of(config).values():
        for file in trust_set.files:
            yield trust_set.uses[0].files_where, file
    for where, _, route in routes_of(config):
        if route.ocsp_response is not None:
            yield f"{where}.ocsp_response", route.ocsp_response
    for name, pool in config.pool.items():
        if pool.cookie_secret_file is not None:
            yield f"{pool_path(name)}.cookie_secret_file", pool.cookie_secret_file


def _everyone_may_read(file: Path) -> bool:
    with contextlib.suppress(OSError):
        return bool(file.stat().st_mode & stat.S_IROTH)
    return False
