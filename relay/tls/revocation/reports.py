"""Tells the checker where the lists of verified certificates are, once for each CA.

Only for routes and pools with `from_certificates`. A peer whose issuer has no list yet
is refused, and reported: the checker fetches the list, and later handshakes pass.

Never: waits; reports a certificate that OpenSSL has not verified.
"""

from __future__ import annotations

import socket
import time

from relay.shared.list_reports import ListReport, send_report
from relay.tls.certificates.der import DerError
from relay.tls.identity import Identity
from relay.tls.raw import Pointer
from relay.tls.revocation.distribution_points import uris_of
from relay.tls.trust import CrlPolicy
from relay.tls.verification import Chain, verified_chain

_MOST_REMEMBERED = 1024
# The checker remembers reports, but its directory may be deleted.
AGAIN_S = 600.0


class ListReports:
    """An end of the channel; `sock` is a writer of `relay.shared.list_reports`."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sent_at: dict[object, float] = {}

    def report(self, ssl: Pointer, who: Identity, chain: Chain, policy: CrlPolicy | None) -> None:
        """Report a certificate and the chain above it, if that is wanted, and news.

        Call it after a handshake, also if the certificate was refused.
        """
        if policy is None or not policy.learns or not chain:
            return
        key = (who.for_lists.points, tuple(each.fingerprint for each in chain))
        now = time.monotonic()
        if now < self._sent_at.get(key, -AGAIN_S) + AGAIN_S:
            return
        urls = [url for each in (who, *chain[:-1]) for url in _urls_of(each)]
        verified = verified_chain(ssl)
        if not verified:
            return  # a resumed session
        issuers = verified[1:-1]
        if urls and not send_report(
            self._socket, ListReport(tuple(dict.fromkeys(urls)), tuple(issuers))
        ):
            return
        if len(self._sent_at) >= _MOST_REMEMBERED:
            self._sent_at.clear()
        self._sent_at[key] = now


def _urls_of(who: Identity) -> tuple[str, ...]:
    try:
        found = uris_of(who.for_lists.points) if who.for_lists.points else ()
    except DerError:
        return ()
    return tuple(url for url in found if url[:7].lower() == "http://")
