"""One backend in one worker: its cells, its certificate, and a TLS session to resume.

Never: opens a connection, or chooses a backend for a client.
"""

from __future__ import annotations

import time
from typing import NamedTuple, Protocol

from relay.errors import Reason
from relay.shared.entities import (
    HEALTH,
    MODE_OVERRIDE,
    RETURNED_AT_MS,
    WEIGHT_OVERRIDE,
)
from relay.shared.label_values import FROM_BACKEND, TO_BACKEND, WHYS
from relay.shared.scoreboard import Layout
from relay.tls import verification
from relay.tls.explain import Failure
from relay.tls.generation import BackendTarget, Target
from relay.tls.identity import Identity
from relay.tls.raw import NULL, Pointer, ffi, lib
from relay.tls.revocation.revoked_set import RevokedSet
from relay.tls.trust import BackendTrust
from relay.tls.verification import Chain
from relay.worker.address_rotation import AddressRotation

# The stored session is replaced by a newer one after this time. Ticket lifetimes are
# usually much longer.
RENEW_S = 60.0
# A backend that refuses to resume sessions gets full handshakes for this time.
NO_RESUMPTION_S = 600.0
# With sni = "client", sessions are stored for so many server names. Each takes about
# 8 KiB.
MAX_NAMES = 64


class BackendPeer(NamedTuple):
    """A backend's certificate, the chain above it, and the trust that verified them."""

    identity: Identity
    chain: Chain
    trust: BackendTrust


class Resumable:
    """The TLS session of an earlier connection to a backend under one server name."""

    __slots__ = ("peer", "renew_at", "session", "valid_until_at")

    def __init__(self) -> None:
        self.session: Pointer = None  # freed by cffi
        self.peer: BackendPeer | None = None
        self.renew_at = 0.0
        self.valid_until_at = 0.0

    def drop(self, session: Pointer) -> None:
        """Do not offer this session again. A newer session is kept."""
        if self.session is session:
            self.session = None


class BackendConnection(Protocol):
    """The part of a `Connection` that admission uses."""

    looked_up: RevokedSet | None
    peer: BackendPeer | None
    trust: BackendTrust | None


class BackendState:
    """What a worker knows of one backend."""

    __slots__ = (
        "cell_active",
        "cell_from",
        "cell_health",
        "cell_mode",
        "cell_returned",
        "cell_to",
        "cell_weight",
        "cells_why",
        "failure",
        "index",
        "resumable",  # under the backend's own server name
        "resumable_by_name",  # under those of clients; the last one used is last
        "resume_after_at",
        "rotation",
        "target",
        "tls",  # the target, if the relay does TLS with it
    )

    def __init__(self, index: int, target: Target, layout: Layout) -> None:
        self.index = index
        self.target = target
        self.tls = target if isinstance(target, BackendTarget) else None
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
        self.rotation: AddressRotation | None = None  # None if the address is an IP address
        self.resumable = Resumable()
        self.resumable_by_name: dict[bytes, Resumable] = {}
        self.resume_after_at = 0.0
        self.failure: Reason | None = None  # the last one in this worker

    def resumable_under(self, server_name: bytes) -> Resumable:
        """What can be resumed under a client's server name.

        A session counts only under the name that it was made with (RFC 8446, 4.6.1).
        """
        found = self.resumable_by_name.pop(server_name, None) or Resumable()
        if len(self.resumable_by_name) >= MAX_NAMES:
            del self.resumable_by_name[next(iter(self.resumable_by_name))]
        self.resumable_by_name[server_name] = found
        return found

    def session_to_resume(self, kept: Resumable, now_at: float) -> Pointer:
        """The session of an earlier connection, or None.

        Never one whose certificates have expired or were revoked since they were
        verified, or were verified by other CAs.
        """
        peer, target = kept.peer, self.tls
        if kept.session is None or peer is None or target is None:
            return None
        if now_at >= kept.valid_until_at:
            return None
        if peer.trust is not target.trust or target.why_revoked(peer.identity, peer.chain, now_at):
            kept.session = kept.peer = None
        return kept.session

    def drop_all_sessions(self) -> None:
        """Offer no session that has been stored until now."""
        self.resumable.session = None
        self.resumable_by_name.clear()

    def stop_resuming(self, now_at: float) -> bool:
        """Store no session for NO_RESUMPTION_S.

        True if sessions were stored until now.
        """
        stored_until_now = now_at >= self.resume_after_at
        self.resume_after_at = now_at + NO_RESUMPTION_S
        self.drop_all_sessions()
        return stored_until_now

    def keep_session(
        self,
        kept: Resumable,
        ssl: Pointer,
        peer: BackendPeer | None,
        *,
        resumed: bool,
        now_at: float | None = None,
    ) -> None:
        """Store the session of a connection that has read application data.

        In TLS 1.3 its ticket has arrived only then.
        """
        now_at = time.time() if now_at is None else now_at
        if (resumed and now_at < kept.renew_at) or now_at < self.resume_after_at or peer is None:
            return
        session = lib.SSL_get1_session(ssl)
        if session != NULL:
            kept.session = ffi.gc(session, lib.SSL_SESSION_free)
            kept.peer = peer
            kept.valid_until_at = min(each.not_after_at for each in (peer.identity, *peer.chain))
            kept.renew_at = now_at + RENEW_S

    def admit(self, end: BackendConnection, identity: Identity) -> Failure | None:
        """Why the backend is refused, whose certificate OpenSSL has just verified."""
        chain, target = verification.accepted_chain(), self.tls
        if target is None:
            return Failure(Reason.INTERNAL_ERROR, "TLS with a backend that has none")
        end.peer = BackendPeer(identity, chain, end.trust or target.verified_by)
        end.looked_up = target.revoked
        return target.why_revoked(identity, chain, time.time())
