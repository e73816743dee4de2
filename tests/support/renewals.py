"""Renewals as the supervisor sends them, for tests of one process."""

from __future__ import annotations

from pathlib import Path

from relay.files import Files
from relay.tls.certificates.pem import load_authorities, load_key_pair
from relay.tls.renewal import Renewal
from tests.support.pki import Files as Pair


def renewal(*, pair: tuple[Pair, Pair] | None = None, cas: tuple[Path, Path] | None = None):
    """The first of two files is as configured, the second has its new contents."""
    contents, pairs = {}, frozenset()
    if pair is not None:
        configured, new = pair
        files = Files()
        load_key_pair("", new.certificate, new.key, files)
        names = {new.certificate: configured.certificate, new.key: configured.key}
        contents |= {(names[path], limit): data for (path, limit), data in files.contents.items()}
        pairs = frozenset([(configured.certificate, configured.key)])
    if cas is not None:
        files = Files()
        load_authorities("", cas[1], files)
        contents |= {(cas[0], limit): data for (_, limit), data in files.contents.items()}
    return Renewal(contents, pairs, frozenset([cas[0]] if cas is not None else []))
