"""Sessions to judge, without sockets, and the judgement of them."""

from __future__ import annotations

import time
from types import SimpleNamespace

from cryptography.hazmat.primitives.serialization import Encoding

from relay.config.listener_model import Allow, Deny
from relay.core.lifecycle import State
from relay.demo.ca import LeafSpec
from relay.tls.access_rules import compile_rules
from relay.tls.identity import _parse
from relay.tls.revocation.revoked_set import ListInfo, RevokedSet, Scope, build, pack
from relay.tls.trust import BackendTrust, CaTrust, ClientTrust, key_id
from relay.worker.backend import BackendPeer
from relay.worker.driver import DrivenSession
from relay.worker.judgement import PER_TURN, Judgement
from relay.worker.loop import Loop
from relay.worker.session import UPDATE_QUEUE
from tests.support.pki import parsed

SESSIONS, CLIENTS = 20_000, 3_000


class Place:
    """The part of a route or a backend that judging looks at."""

    def __init__(self, trust):
        self.trust, self.revoked = trust, None


def identity(certificate, number=0):
    der = certificate.public_bytes(Encoding.DER)
    return _parse(parsed(certificate).pointer, der, number.to_bytes(32, "big"))


def trust_of(*authorities, cn=()):
    cas = CaTrust.of([parsed(each.certificate) for each in authorities], {})
    return ClientTrust(compile_rules(Allow(cn=cn), Deny()), cas)


def make_sessions(cas, count=SESSIONS):
    """Sessions of many clients, on a route that trusts both CAs."""
    leaf = cas[0].issue(LeafSpec("alice")).certificate
    clients = [identity(leaf, number) for number in range(CLIENTS)]
    root, route = identity(cas[0].certificate), Place(trust_of(*cas))
    target = Place(BackendTrust(route.trust.cas))
    peer = BackendPeer(clients[0], (root,), target.trust)
    made = set()
    for number in range(count):
        session = DrivenSession.__new__(DrivenSession)
        session.state, session.number = State.RELAY, number
        session.route, session.trust = route, route.trust
        session.identity, session.chain = clients[number % CLIENTS], (root,)
        session.expires_at = float("inf")
        session.backend = SimpleNamespace(tls=target)
        session.outbound = SimpleNamespace(peer=peer, trust=target.trust)
        session.client_host = f"10.0.{number % CLIENTS // 250}.{number % 250}"
        made.add(session)
    return made, route, target


def judge(sessions, change):
    """How long all steps take after a change, and the sessions to be closed."""
    made, route, target = sessions
    closed, loop = [], Loop(UPDATE_QUEUE + 1)
    generation = SimpleNamespace(inbound={"": (route,)}, targets={"": (target,)})
    counted = []
    counters = SimpleNamespace(sessions_unjudged=counted.append)
    worker = SimpleNamespace(loop=loop, sessions=made, counters=counters)
    judgement = Judgement(worker, generation, closed.extend)
    change(route, target)
    try:
        before = time.thread_time()
        judgement.again()
        for _ in range(-(-len(made) // PER_TURN)):
            judgement.step()
        return time.thread_time() - before, closed
    finally:
        loop.close()


def revoked(authority, *numbers):
    """A set of revoked certificates of this CA."""
    key = key_id(parsed(authority.certificate))
    info = ListInfo(key, "CN=Root", 1, 0.0, None, Scope(), "root.crl")
    return RevokedSet(build([(info, pack(key, [(n.to_bytes(20, "big"), 1, 0) for n in numbers]))]))
