"""Today's trust for workers of an older generation, with its revoked certificates."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from pathlib import Path

from relay.config.listener_model import Deny
from relay.config.section import Crl
from relay.tls import trust_update
from relay.tls.context_inputs import ContextInputs
from relay.tls.contexts import build_generation
from relay.tls.revocation.distribution_points import Scope
from relay.tls.revocation.fields import RevokedEntry
from relay.tls.revocation.revoked_set import ListInfo, build, pack, shared_set
from relay.tls.revocation.trust_sets import trust_sets_of
from relay.tls.trust import CaTrust
from relay.tls.trust_update import TrustUpdate, apply_trust, parts, trust_of
from tests.support.handshakes import config_of

KEY = b"k" * 32


def generation(pki, *serials, crl=True, sni=("a.example.com",), deny=None):
    """A route and a pool with the same set, and a route without one."""
    settings = {"crl": Crl(files=(Path("a.crl"),))} if crl else {}
    first = {"client_ca": pki.ca, "sni": sni, "deny": deny, **settings}
    config = config_of(pki, routes=(first, {}), **settings)
    info = ListInfo(KEY, "CN=Root", 1, 1.0, 2.0, Scope(), "a.crl")
    packed = pack(KEY, [RevokedEntry(serial, 1, 1) for serial in serials])
    sets = {name: shared_set(name, build([(info, packed)])) for name in trust_sets_of(config)}
    return build_generation(config, 1, ContextInputs(revoked=sets))


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_an_older_generation_gets_todays_revoked_certificates(pki):
    older, serving = generation(pki), generation(pki, b"\5")
    update, fds = trust_of(serving)
    assert len(fds) == 1
    apply_trust(older, update, fds)
    first, second = older.inbound["https"]
    [target] = older.targets["main"]
    assert first.revoked is target.revoked
    assert first.revoked.find(KEY, b"\5")
    assert second.revoked is None


def test_lists_that_the_settings_no_longer_have_are_gone(pki):
    older = generation(pki, b"\5")
    update, fds = trust_of(generation(pki, crl=False))
    assert fds == []
    apply_trust(older, update, fds)
    assert older.inbound["https"][0].revoked is None
    assert older.inbound["https"][0].trust.crl is None


def test_a_route_is_found_again_by_any_of_its_names(pki):
    older = generation(pki, sni=("a.example.com", "b.example.com"))
    deny = Deny(cn=("alice",))
    serving = generation(pki, b"\5", sni=("b.example.com",), deny=deny)
    update, fds = trust_of(serving)
    apply_trust(older, update, fds)
    first, second = older.inbound["https"]
    assert first.trust.rules == update.routes["https", "b.example.com"].rules
    assert first.revoked.find(KEY, b"\5")
    assert second.trust.rules != first.trust.rules


def test_a_route_that_is_gone_has_the_lists_and_cas_of_today(pki):
    older, serving = generation(pki), generation(pki, b"\5", sni=("other.example.com",))
    [first, _], rules = older.inbound["https"], older.inbound["https"][0].trust.rules
    serving.inbound["https"][0].trust = trust = replace(first.trust, cas=CaTrust())
    update, fds = trust_of(serving)
    apply_trust(older, update, fds)
    assert first.trust.cas is trust.cas
    assert first.trust.rules is rules
    assert first.revoked.find(KEY, b"\5")


def test_a_route_that_is_gone_has_the_lists_that_it_had_last(pki):
    older = generation(pki, crl=False)
    apply_trust(older, *trust_of(last := generation(pki)))
    [first, _] = older.inbound["https"]
    assert first.revoked.find(KEY, b"\5") is None
    apply_trust(older, *trust_of(serving := generation(pki, b"\5", sni=("other.example.com",))))
    assert first.revoked.find(KEY, b"\5")
    del last, serving


def test_a_pool_that_is_gone_has_the_lists_and_cas_of_today(pki):
    older, serving = generation(pki), generation(pki, b"\5")
    older.targets["before"] = older.targets.pop("main")
    older.config.pool["before"] = older.config.pool["main"]
    [target] = serving.targets["main"]
    target.trust = replace(target.trust, cas=CaTrust())
    # The file is that of a route, too.
    route = serving.inbound["https"][0]
    route.trust = replace(route.trust, cas=target.trust.cas)
    apply_trust(older, *trust_of(serving))
    [target] = older.targets["before"]
    assert target.trust.cas == CaTrust()
    assert target.revoked.find(KEY, b"\5")


def test_the_descriptors_end_with_their_generation(pki):
    gc.collect()
    before = open_files()
    made = generation(pki, b"\5")
    _, [fd] = trust_of(made)
    assert os.fstat(fd).st_size
    assert open_files() > before
    del made
    gc.collect()
    assert open_files() == before


def test_an_update_with_many_sets_comes_in_parts(pki, monkeypatch):
    monkeypatch.setattr(trust_update, "SETS", 2)
    routes = {("https", str(number)): object() for number in range(7)}
    pools = {"web": object(), "api": object()}
    sets = (*(frozenset([key]) for key in list(routes)[:4]), frozenset([("https", "4"), "web"]))
    found = list(parts(TrustUpdate(routes, pools, sets), range(5)))
    assert [list(fds) for _, fds in found] == [[2, 3], [4], [0, 1]]
    assert sum(len(each.routes) + len(each.pools) for each, _ in found) == 9
    assert {key: trust for each, _ in found for key, trust in each.routes.items()} == routes
    for each, fds in found:
        assert len(each.sets) == len(fds)
        names = {*each.routes, *each.pools}
        assert all(names >= one for one in each.sets)
    [only] = parts(TrustUpdate(routes, pools), [])
    assert only == (TrustUpdate(routes, pools), [])
