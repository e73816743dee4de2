"""The files that are renewed together: a certificate with its key, or a file of CAs.

Never: opens one of these files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from relay.config.key_path import routes_of
from relay.config.model import Config
from relay.tls.certificates.configured import PairFiles, authorities_of, pairs_of
from relay.tls.certificates.passphrase import READ_BYTES
from relay.tls.certificates.pem_file import MAX_FILE_BYTES

SetKind = Literal["pair", "cas"]
SetKey = tuple[SetKind, tuple[Path | None, ...]]


@dataclass(frozen=True, slots=True)
class FileSet:
    """Files of which the relay uses either all new contents or none.

    `wheres` are the configuration keys that name them.
    """

    kind: SetKind
    named: tuple[Path | None, ...]  # as in PairFiles, or one CA file
    wheres: tuple[str, ...]

    @property
    def key(self) -> SetKey:
        """What tells it from other sets of the same configuration."""
        return self.kind, self.named

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, each once."""
        return tuple(dict.fromkeys(path for path in self.named if path is not None))

    def read_bytes(self, path: Path) -> int:
        """How much of a file is read."""
        is_passphrase = self.kind == "pair" and path not in self.named[:2]
        return READ_BYTES if is_passphrase else MAX_FILE_BYTES

    @property
    def pair(self) -> PairFiles:
        """The files of a pair."""
        certificate, key, passphrase = self.named
        assert certificate is not None  # noqa: S101  for mypy
        assert key is not None  # noqa: S101  for mypy
        return PairFiles(certificate, key, passphrase)

    def __str__(self) -> str:
        return " with ".join(map(str, self.files[:2]))


def file_sets(config: Config) -> tuple[FileSet, ...]:
    """Every set of a configuration, each once.

    CAs with revocation lists are not here: both are read again by a reload.
    """
    wheres: dict[SetKey, list[str]] = {}
    for key, where in _uses(config):
        wheres.setdefault(key, []).append(where)
    return tuple(FileSet(*key, tuple(several)) for key, several in wheres.items())


def _uses(config: Config) -> Iterator[tuple[SetKey, str]]:
    for pair in pairs_of(config):
        yield ("pair", tuple(pair.files)), pair.where
    with_lists = set(_cas_with_lists(config))
    for use in authorities_of(config):
        if use.file not in with_lists:
            yield ("cas", (use.file,)), use.where


def _cas_with_lists(config: Config) -> Iterator[Path | None]:
    for _, _, route in routes_of(config):
        if route.revocation is not None:
            yield route.client_ca
    for pool in config.pool.values():
        if pool.revocation is not None:
            yield pool.backend_ca
