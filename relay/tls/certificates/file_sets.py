"""The files that are renewed together: a certificate with its key, CAs, a response.

A fourth kind is a file of CAs with its revocation lists (`supervisor.list_sets`).

Never: opens one of these files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from relay.config.key_path import private_key_path, routes_of
from relay.config.model import Config
from relay.tls.certificates.configured import PairFiles, authorities_of, pairs_of
from relay.tls.certificates.passphrase import READ_BYTES, passphrase_key
from relay.tls.certificates.pem_file import MAX_FILE_BYTES

# Most responses have less than 3 kB.
MAX_RESPONSE_BYTES = 64 * 1024

SetKind = Literal["pair", "cas", "crl", "response"]
SetKey = tuple[SetKind, tuple[Path | None, ...]]


@dataclass(frozen=True, slots=True)
class FileSet:
    """Files of which the relay uses either all new contents or none.

    `wheres` are the configuration keys that name them.
    """

    kind: SetKind
    named: tuple[Path | None, ...]  # as in PairFiles, or a CA file and its lists, or one file
    wheres: tuple[str, ...]
    list_bytes: int = 0  # how much of a revocation list is read

    @property
    def key(self) -> SetKey:
        """What tells it from other sets of the same configuration."""
        return self.kind, self.named

    @property
    def key_paths(self) -> set[str]:
        """The configuration keys that a finding about it may have."""
        if self.kind != "pair":
            return set(self.wheres)
        every = ((each, private_key_path(each), passphrase_key(each)) for each in self.wheres)
        return {key for each in every for key in each}

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, each once."""
        return tuple(dict.fromkeys(path for path in self.named if path is not None))

    def read_bytes(self, path: Path) -> int:
        """How much of a file is read."""
        if self.kind == "crl" and path != self.named[0]:
            return self.list_bytes
        if self.kind == "response":
            return MAX_RESPONSE_BYTES
        is_passphrase = self.kind == "pair" and path not in self.named[:2]
        return READ_BYTES if is_passphrase else MAX_FILE_BYTES

    @property
    def pair(self) -> PairFiles:
        """The files of a pair."""
        certificate, key, passphrase = self.named
        assert certificate is not None  # noqa: S101  for mypy
        assert key is not None  # noqa: S101  for mypy
        return PairFiles(certificate, key, passphrase)

    @property
    def own_files(self) -> tuple[Path, ...]:
        """Without the CA file that lists belong to: it is a set of its own."""
        return self.files[1:] if self.kind == "crl" else self.files

    def __str__(self) -> str:
        return (" and " if self.kind == "crl" else " with ").join(map(str, self.own_files[:2]))


def file_sets(config: Config) -> tuple[FileSet, ...]:
    """Every set of certificates and keys of a configuration, each once."""
    wheres: dict[SetKey, list[str]] = {}
    for key, where in _uses(config):
        wheres.setdefault(key, []).append(where)
    return tuple(FileSet(*key, tuple(several)) for key, several in wheres.items())


def _uses(config: Config) -> Iterator[tuple[SetKey, str]]:
    for pair in pairs_of(config):
        yield ("pair", tuple(pair.files)), pair.where
    for where, _, route in routes_of(config):
        if route.ocsp_response is not None:
            yield ("response", (route.ocsp_response,)), f"{where}.ocsp_response"
    for use in authorities_of(config):
        yield ("cas", (use.file,)), use.where
