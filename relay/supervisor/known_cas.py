"""The CAs of a running configuration, beside those in its files.

Never: decides whether a renewed file is used. A CA may be missing on purpose or by
accident, and only the operator knows which.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

from relay.errors import ConfigError, Problem
from relay.files import Files
from relay.tls.certificates.certificate import Certificate, subject_of
from relay.tls.certificates.configured import authorities_of
from relay.tls.certificates.file_sets import FileSet
from relay.tls.certificates.openssl import Issuers
from relay.tls.certificates.pem import load_authorities
from relay.tls.generation import Generation

_MOST_NAMES = 5


def known_issuers(generation: Generation, files: Files) -> Issuers:
    """The CAs of all files, those that were renewed and the others."""
    found: list[Certificate] = []
    for use in authorities_of(generation.config):
        with contextlib.suppress(ConfigError):  # reported elsewhere, if it has changed
            found += load_authorities(use.where, use.file, files)
    return Issuers(found)


def lost_cas(generation: Generation, sets: Collection[FileSet], files: Files) -> Iterator[Problem]:
    """The keys that these renewed CA files no longer have, one line for each file."""
    before = {
        f"{live.where}.client_ca": live.cas.certificates
        for several in generation.inbound.values()
        for live in several
    }
    for targets in generation.targets.values():
        for target in targets:
            before[f"{target.where}.backend_ca"] = target.cas.certificates
    for each in sets:
        where = next((where for where in each.wheres if where in before), None)
        if where is None:
            continue
        file = each.files[0]
        keys = {ca.spki for ca in load_authorities(where, file, files)}
        lost = [f'"{subject_of(ca)}"' for ca in before[where] if ca.spki not in keys]
        if lost:
            names = ", ".join(dict.fromkeys(lost[:_MOST_NAMES]))
            more = f" and {len(lost) - _MOST_NAMES} more" if len(lost) > _MOST_NAMES else ""
            what = (
                f"{file} no longer has {names}{more}: whoever it vouched for is refused, and open"
                " sessions end"
            )
            yield Problem(where, what, "if that was not meant, put it back")
