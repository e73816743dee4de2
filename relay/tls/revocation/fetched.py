"""What the checker has fetched and learned for a trust set.

It comes from a directory of the checker's user, and from processes that an attacker may
control. So nothing of it counts because it is there: a list needs the signature of a
CA, and an intermediate that a peer has sent is verified with the CAs of the trust set
whenever it is used.

Never: makes a certificate trusted for anything but lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from relay.tls.certificates.certificate import Certificate
from relay.tls.certificates.extensions import is_ca
from relay.tls.certificates.openssl import Verifier


@dataclass(frozen=True, slots=True)
class FetchedLists:
    """Files with lists, and their URLs; each may be missing or unusable.

    `files` are of configured URLs. `learned` are of URLs that certificates have named,
    for any trust set. `issuers` are intermediates (DER) that may have signed them.
    """

    files: Mapping[Path, str] = field(default_factory=dict)
    learned: Mapping[Path, str] = field(default_factory=dict)
    issuers: tuple[bytes, ...] = ()


def learned_issuers(
    cas: Sequence[Certificate], candidates: Iterable[bytes]
) -> tuple[Certificate, ...]:
    """Those of the certificates (DER) that are CAs below one of these CAs."""
    parsed: dict[bytes, Certificate] = {}
    for der in candidates:
        try:
            parsed[der] = Certificate.from_der(der)
        except ValueError:
            continue
    known = {each.der for each in cas}
    every = [each for each in parsed.values() if each.der not in known and is_ca(each)]
    if not every:
        return ()
    verifier = Verifier(cas, partial=True)
    return tuple(each for each in every if verifier.verify(each, every) is None)
