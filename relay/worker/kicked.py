"""What a worker does with `relay kick`: ends sessions, and keeps clients out.

A client that is kept out by its address is refused before its first byte is read, by
its certificate when that is admitted, in a full and in a resumed handshake.

Never: decides who is kicked (an operator does), or keeps a client out for ever.
Next: `relay.core.kicks.KickList`
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from relay.core.kicks import Kick, KickList, Kind
from relay.core.lifecycle import State
from relay.errors import Reason, SessionError, Side
from relay.tls.explain import Failure
from relay.tls.identity import Identity
from relay.worker.session import Session


@dataclass(frozen=True, slots=True)
class KickUpdate:
    """What the supervisor sends: everybody who is kept out, and whom to end now."""

    kept_out: tuple[Kick, ...]
    end: Kick | None = None


def refuse_address(kicks: KickList, host: str) -> SessionError | None:
    """Why a client of this address is refused; usually None."""
    now = time.monotonic()
    kick = kicks.of_address(host, now)
    if kick is None:
        return None
    return SessionError(Side.INBOUND, Reason.KICKED, kick.describe(now))


def refuse_identity(kicks: KickList, who: Identity) -> Failure | None:
    """Why a client with this certificate is refused; usually None."""
    now = time.monotonic()
    kick = kicks.of_names(who.fingerprint, names_of(who), now)
    return Failure(Reason.KICKED, kick.describe(now)) if kick is not None else None


def names_of(who: Identity) -> Iterator[str]:
    """The names of a certificate that a kick can have."""
    yield who.subject
    for name in who.cn:
        yield f"CN={name}"
    yield from who.san_uri


def sessions_of(kick: Kick, sessions: Iterable[Session]) -> list[tuple[Session, SessionError]]:
    """The sessions that a kick ends, each with the reason.

    A session whose client has not shown its certificate is judged when it does.
    """
    error = SessionError(Side.INBOUND, Reason.KICKED, kick.describe(time.monotonic()))
    only, now = KickList((kick,)), float("-inf")
    known: dict[str | int, bool] = {}  # by address or certificate: most have several sessions
    found = []
    for session in sessions:
        who = session.identity
        if session.state is State.CLOSED:
            continue
        if kick.target.kind is Kind.ADDRESS:
            host = session.client_host
            if host not in known:
                known[host] = only.of_address(host, now) is not None
            is_meant = known[host]
        elif who is not None:
            if id(who) not in known:
                known[id(who)] = only.of_names(who.fingerprint, names_of(who), now) is not None
            is_meant = known[id(who)]
        else:
            continue
        if is_meant:
            found.append((session, error))
    return found
