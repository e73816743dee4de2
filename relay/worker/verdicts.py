"""What a change of trust means for the sessions of one route, or with one backend.

Nearly all sessions share the trust that admitted them and the end of their chain, so
what is found for one holds for the others. It is kept by the address of what it was
found for: a comparison by value costs more than the judgement.

Never: looks at a session's state, or at the clock.
Next: `relay.tls.standing.standing`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from relay.errors import Reason, SessionError, Side
from relay.tls.access_rules import AccessRules
from relay.tls.explain import Failure
from relay.tls.identity import Identity
from relay.tls.revocation.judge import why_revoked_since
from relay.tls.revocation.revoked_set import RevokedSet
from relay.tls.standing import Standing, has_lost_none, standing
from relay.tls.trust import BackendTrust, CaTrust, ClientTrust
from relay.tls.verification import Chain

Trust = ClientTrust | BackendTrust


class _Words(NamedTuple):
    """The reasons and sentences of one side."""

    refused: Reason  # in a handshake
    not_trusted: Reason
    revoked: Reason
    lost: str
    unknown: str


_WORDS = {
    Side.INBOUND: _Words(
        Reason.UNKNOWN_CA,
        Reason.NOT_ALLOWED_DURING_SESSION,
        Reason.REVOKED_DURING_SESSION,
        "the CA that the client's certificate leads to is no longer in client_ca",
        "client_ca has lost CAs, and the client had resumed an earlier TLS session, which does"
        " not tell which CA issued its certificate",
    ),
    Side.OUTBOUND: _Words(
        Reason.BACKEND_UNKNOWN_CA,
        Reason.BACKEND_NOT_TRUSTED_DURING_SESSION,
        Reason.BACKEND_REVOKED_DURING_SESSION,
        "the CA that the backend's certificate leads to is no longer in backend_ca",
        "backend_ca has lost CAs, and it cannot be told which CA issued the backend's certificate",
    ),
}


class Verdict(NamedTuple):
    """Why a session ends, or None, and whether it could be judged at all."""

    error: SessionError | None = None
    known: bool = True


PASSED = Verdict()


def why_not_trusted(
    side: Side, who: Identity, chain: Chain, then: CaTrust, now: CaTrust
) -> Failure | None:
    """Why the CAs of now refuse a peer that those of then have just verified."""
    if now is then:
        return None
    found = standing(who, chain, then, now)
    if found is Standing.TRUSTED:
        return None
    words = _WORDS[side]
    return Failure(words.refused, words.lost if found is Standing.GONE else words.unknown)


class Place(Protocol):
    """A route, or a backend."""

    @property
    def trust(self) -> Trust: ...  # noqa: D102
    @property
    def revoked(self) -> RevokedSet | None: ...  # noqa: D102


Check = Callable[[Identity, Chain], Verdict]


class Verdicts:
    """The verdicts on the peers of one route or backend.

    `has_new_lists`: they are looked up in its revocation lists too.
    """

    __slots__ = ("_by_chain", "_by_peer", "_has_new_lists", "_kept", "_place", "_side")

    def __init__(self, side: Side, place: Place, *, has_new_lists: bool) -> None:
        self._side = side
        self._place = place
        self._has_new_lists = has_new_lists
        self._by_peer: dict[int, Verdict] = {}
        self._by_chain: dict[tuple[int, ...], Verdict] = {}
        self._kept: list[object] = []  # so that no address is used for something else

    def since(self, then: Trust) -> Check | None:
        """What judges a peer that was admitted by the trust of then.

        None if every one of them passes.
        """
        self._kept.append(then)
        now, checks = self._place.trust, list[Check]()
        if self._has_new_lists:
            checks.append(self._judge_lists)
        if then is not now:
            if not has_lost_none(then.cas, now.cas):
                checks.append(partial(self._judge_cas, then.cas, {}))
            if isinstance(now, ClientTrust) and isinstance(then, ClientTrust):  # noqa: SIM102
                if now.rules != then.rules:
                    checks.append(partial(self._judge_rules, now.rules))
        if len(checks) > 1:
            return partial(_judge_by_all, checks)
        return checks[0] if checks else None

    def _judge_cas(
        self, then: CaTrust, known: dict[int, Verdict], who: Identity, chain: Chain
    ) -> Verdict:
        key = id(chain[-1] if chain else who)
        verdict = known.get(key)
        if verdict is None:
            verdict = PASSED
            found = standing(who, chain, then, self._place.trust.cas)
            if found is not Standing.TRUSTED:
                verdict = self._lost(chain, found)
            known[key] = verdict
            self._kept.append((who, chain))
        return verdict

    def _lost(self, chain: Chain, found: Standing) -> Verdict:
        words, is_known = _WORDS[self._side], found is Standing.GONE
        if chain and chain[-1].spki_sha256 in self._place.trust.cas.revoked_ids:
            detail = f'the CA "{chain[-1].subject}", where its chain ends, is revoked itself'
            return Verdict(SessionError(self._side, words.revoked, detail))
        detail = words.lost if is_known else words.unknown
        return Verdict(SessionError(self._side, words.not_trusted, detail), is_known)

    def _judge_rules(self, rules: AccessRules, who: Identity, _chain: Chain) -> Verdict:
        verdict = self._by_peer.get(id(who))
        if verdict is None:
            verdict = PASSED
            if not rules.allow(who):
                reason = Reason.NOT_ALLOWED_DURING_SESSION
                verdict = Verdict(SessionError(self._side, reason, rules.why_not(who)))
            self._by_peer[id(who)] = verdict
            self._kept.append(who)
        return verdict

    def _judge_lists(self, who: Identity, chain: Chain) -> Verdict:
        key = (id(who), id(chain[0])) if len(chain) == 1 else (id(who), *map(id, chain))
        verdict = self._by_chain.get(key)
        if verdict is None:
            verdict = self._by_chain[key] = self._look_up(who, chain)
            self._kept.append((who, chain))
        return verdict

    def _look_up(self, who: Identity, chain: Chain) -> Verdict:
        place = self._place
        failure = why_revoked_since(self._side, who, chain, place.trust.cas, place.revoked)
        if failure is None:
            return PASSED
        return Verdict(SessionError(self._side, _WORDS[self._side].revoked, failure.detail))


def _judge_by_all(checks: Sequence[Check], who: Identity, chain: Chain) -> Verdict:
    """The first verdict that does not pass."""
    for check in checks:
        verdict = check(who, chain)
        if verdict is not PASSED:
            return verdict
    return PASSED
