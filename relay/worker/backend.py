"""One backend, seen from one worker: its cells in the scoreboard, and the TLS session to resume.

Never: opens a connection, or decides who gets it.
"""

from __future__ import annotations

from relay.errors import Reason
from relay.shared.catalogue import FROM_BACKEND, TO_BACKEND, WHYS
from relay.shared.entities import (
    HEALTH,
    MODE_OVERRIDE,
    RETURNED_AT_MS,
    WEIGHT_OVERRIDE,
)
from relay.shared.scoreboard import Layout
from relay.tls.contexts import BackendTarget
from relay.tls.identity import identity_of
from relay.tls.raw import NULL, Pointer, ffi, lib
from relay.worker.address_rotation import AddressRotation

# A session is renewed this long after it was stored, long before a usual ticket lifetime is over.
RENEW_S = 60.0
# A backend that answers resumptions with an alert gets full handshakes this long.
NO_RESUMPTION_S = 600.0


class BackendState:
    """One backend, seen from one worker."""

    __slots__ = (
        "cell_active", "cell_from", "cell_health", "cell_mode", "cell_returned", "cell_to", "cell_weight", "cells_why",
        "failure", "index", "places", "renew_at", "resume_after_at", "session", "target", "valid_until_at",
    )  # fmt: skip

    def __init__(self, index: int, target: BackendTarget, layout: Layout) -> None:
        self.index = index
        self.target = target
        labels = (target.pool, target.route)
        self.cell_to = layout.cell("relay_bytes_total", *labels, TO_BACKEND)
        self.cell_from = layout.cell("relay_bytes_total", *labels, FROM_BACKEND)
        self.cell_active = layout.cell("relay_backend_connections_active", *labels)
        self.cell_health = layout.cell(HEALTH, *labels)
        self.cell_returned = layout.cell(RETURNED_AT_MS, *labels)
        self.cell_mode = layout.cell(MODE_OVERRIDE, *labels)
        self.cell_weight = layout.cell(WEIGHT_OVERRIDE, *labels)
        self.cells_why = {
            why: layout.cell("relay_backend_selected_total", *labels, why) for why in WHYS
        }
        self.places: AddressRotation | None = None  # of a backend whose address is a host name
        self.session: Pointer = None  # to resume; owned by cffi's collector
        self.renew_at = 0.0
        self.valid_until_at = 0.0
        self.resume_after_at = 0.0
        self.failure: Reason | None = None  # the last one that this worker has seen

    def session_to_resume(self, now_at: float) -> Pointer:
        """A session of an earlier connection, or None. Never one that outlives a certificate of the chain it was verified with."""
        return self.session if now_at < self.valid_until_at else None

    def drop_session(self, session: Pointer) -> None:
        """Offer this session no more; one that has taken its place meanwhile stays."""
        if self.session is session:
            self.session = None

    def stop_resuming(self, now_at: float) -> bool:
        """Keep no session for NO_RESUMPTION_S. True when this is news."""
        news = now_at >= self.resume_after_at
        self.resume_after_at = now_at + NO_RESUMPTION_S
        self.session = None
        return news

    def keep_session(self, ssl: Pointer, *, resumed: bool, now_at: float) -> None:
        """Remember the session of a connection that has read application data (only then its TLS 1.3 ticket is there)."""
        if (resumed and now_at < self.renew_at) or now_at < self.resume_after_at:
            return
        if not resumed:
            self.valid_until_at = _chain_valid_until(ssl)
        session = lib.SSL_get1_session(ssl)
        if session != NULL:
            self.session = ffi.gc(session, lib.SSL_SESSION_free)
            self.renew_at = now_at + RENEW_S


def _chain_valid_until(ssl: Pointer) -> float:
    """The earliest not_after of the chain that OpenSSL has verified, Unix time; 0, that is never resumed, when there is none."""
    chain = lib.SSL_get0_verified_chain(ssl)
    if chain == NULL:
        return 0.0
    return min(
        (
            identity_of(lib.sk_X509_value(chain, i)).not_after_at
            for i in range(lib.sk_X509_num(chain))
        ),
        default=0.0,
    )
