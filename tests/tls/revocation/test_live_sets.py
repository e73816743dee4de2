"""Trust sets in routes and backends, and their renewal."""

from dataclasses import replace
from pathlib import Path

import pytest

from relay.config.section import Crl
from relay.demo.ca import Authority, to_pem
from relay.files import Files
from relay.shared.sealed_memory import SealedFile
from relay.tls.certificates.pem import load_authorities
from relay.tls.context_inputs import ContextInputs
from relay.tls.contexts import build_generation
from relay.tls.renewal import Renewal, map_sets, renew
from relay.tls.revocation.fetched import FetchedLists
from relay.tls.revocation.revoked_set import RevokedSet
from relay.tls.revocation.set_builder import SetBuilder
from relay.tls.revocation.trust_sets import trust_sets_of
from tests.support.crls import make_crl
from tests.support.handshakes import config_of

ROOT = Authority.root("Root")
BELOW = ROOT.intermediate("Below")
CRL = Crl(files=(Path("a.crl"),), missing="accept", expired="grace", grace_s=60)


@pytest.fixture
def config(pki, tmp_path):
    """A route and a pool with the same set."""
    file = tmp_path / "ca.pem"
    file.write_bytes(to_pem((ROOT.certificate, BELOW.certificate)))
    return config_of(
        pki,
        routes=({"client_ca": file, "crl": CRL}, {"client_ca": file}),
        backend_ca=file,
        crl=CRL,
    )


def buffer_of(config, tmp_path, *lists):
    [(name, trust_set)] = trust_sets_of(config).items()
    for number, data in enumerate(lists):
        (tmp_path / f"{number}.crl").write_bytes(data)
    cas = load_authorities("", trust_set.cas)
    fetched = {tmp_path / f"{number}.crl": f"http://pki/{number}" for number in range(len(lists))}
    built = SetBuilder(2e9, Files()).build(replace(trust_set, files=()), cas, FetchedLists(fetched))
    assert built.errors == ()
    return name, built.buffer


def built(config, name, buffer):
    return build_generation(config, 1, ContextInputs(revoked={name: RevokedSet(buffer)}))


def test_routes_and_backends_have_their_set_and_policy(config, tmp_path):
    generation = built(config, *buffer_of(config, tmp_path, make_crl(ROOT, [5])))
    with_lists, without = generation.inbound["https"]
    [target] = generation.targets["main"]
    [revoked] = generation.revoked.values()
    assert with_lists.revoked is target.revoked is revoked
    assert (with_lists.trust.crl.accepts_missing, with_lists.trust.crl.grace_s) == (True, 60)
    assert target.trust.crl == with_lists.trust.crl
    assert (without.revoked, without.trust.crl) == (None, None)


def test_a_route_whose_set_is_not_there_still_has_its_policy(config):
    """So every client is looked up, and no list covers it."""
    route = build_generation(config, 1).inbound["https"][0]
    assert route.revoked is None
    assert route.trust.crl is not None


def test_a_revoked_ca_leaves_the_trust_generation(config, tmp_path):
    good = built(config, *buffer_of(config, tmp_path, make_crl(ROOT)))
    bad = built(config, *buffer_of(config, tmp_path, make_crl(ROOT, [BELOW.certificate])))
    plain = good.inbound["https"][1]
    assert good.inbound["https"][0].trust.cas.digest == plain.trust.cas.digest
    trust = bad.inbound["https"][0].trust.cas
    assert trust.digest != plain.trust.cas.digest
    assert len(trust.keys) == 1
    assert bad.inbound["https"][1].trust.cas.digest == plain.trust.cas.digest


def test_a_renewed_list_takes_effect_in_place(config, tmp_path):
    name, buffer = buffer_of(config, tmp_path, make_crl(ROOT, number=1))
    generation = built(config, name, buffer)
    route, plain = generation.inbound["https"]
    [target] = generation.targets["main"]
    material, context, trust = route.material, target.context, route.trust
    _, newer = buffer_of(config, tmp_path, make_crl(ROOT, [5], number=2))
    file = SealedFile("test", newer)
    renewal = Renewal({}, revoked={name: 0})
    renew(generation, renewal, map_sets(renewal, [file.fd]))
    file.close()
    assert len(route.revoked) == len(target.revoked) == len(generation.revoked[name]) == 1
    # The same CAs are trusted, so tickets go on, and nothing is built.
    assert (route.material, target.context, route.trust) == (material, context, trust)
    assert plain.revoked is None


def test_a_list_that_revokes_a_ca_gives_the_route_another_material(config, tmp_path):
    name, buffer = buffer_of(config, tmp_path, make_crl(ROOT, number=1))
    generation = built(config, name, buffer)
    route, plain = generation.inbound["https"]
    material, other = route.material, plain.material
    _, newer = buffer_of(config, tmp_path, make_crl(ROOT, [BELOW.certificate], number=2))
    renew(generation, Renewal({}, revoked={name: 0}), {name: RevokedSet(newer)})
    assert route.material != material
    assert plain.material == other
    assert len(route.trust.cas.keys) == 1


def test_a_directory_that_cannot_be_looked_into_has_no_lists(config, tmp_path):
    [trust_set] = trust_sets_of(config).values()
    (tmp_path / "a.crl").write_bytes(make_crl(ROOT, [5]))
    files = replace(trust_set, files=(tmp_path / "a.crl",))
    unreadable = FetchedLists({tmp_path / ("x" * 300): "http://pki/a"})
    found = SetBuilder(2e9, Files()).build(files, load_authorities("", trust_set.cas), unreadable)
    assert (found.errors, found.unused, len(found.lists)) == ((), (), 1)
