"""Lists found in certificates count if a CA of the trust set is behind them."""

from __future__ import annotations

import time

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from relay.config.section import Crl
from relay.demo.ca import Authority, LeafSpec
from relay.files import Files
from relay.tls.revocation.fetched import FetchedLists, learned_issuers
from relay.tls.revocation.set_builder import SetBuilder
from relay.tls.revocation.trust_sets import trust_sets_of
from tests.support.crls import make_crl
from tests.support.handshakes import config_of
from tests.support.pki import parsed

ROOT, OTHER = Authority.root("Root"), Authority.root("Other")
MIDDLE = ROOT.intermediate("Middle")
LOWER = MIDDLE.intermediate("Lower")


def der(authority):
    return authority.certificate.public_bytes(Encoding.DER)


@pytest.fixture
def build(pki, tmp_path):
    """`build(lists, issuers, files=…)`: the set of ROOT with these learned lists."""

    def run(lists, issuers=(), *, own=()):
        paths = []
        for number, data in enumerate([*own, *lists]):
            paths.append(tmp_path / f"{number}.crl")
            paths[-1].write_bytes(data)
        crl = Crl(files=tuple(paths[: len(own)]), from_certificates=True, hosts=("a",))
        config = config_of(pki, routes=({"crl": crl},))
        [trust_set] = trust_sets_of(config).values()
        fetched = FetchedLists(
            {},
            {path: f"http://a/{path.name}" for path in paths[len(own) :]},
            tuple(map(der, issuers)),
        )
        cas = [parsed(ROOT.certificate)]
        return SetBuilder(time.time(), Files()).build(trust_set, cas, fetched)

    run.config = config_of(pki, routes=({"crl": Crl(from_certificates=True, hosts=("a",))},))
    return run


def issuers_in(built):
    return {each.issuer for each in built.lists}


def test_a_list_of_a_learned_intermediate_counts(build):
    built = build([make_crl(ROOT), make_crl(MIDDLE, [5]), make_crl(LOWER)], [LOWER, MIDDLE])
    assert built.errors == built.unused == ()
    assert issuers_in(built) == {"CN=Root", "CN=Middle", "CN=Lower"}


def test_lists_of_other_cas_are_left_out_without_a_word(build):
    built = build([make_crl(ROOT), make_crl(OTHER), make_crl(MIDDLE), b"<html>"], [OTHER])
    assert built.errors == built.unused == ()
    assert issuers_in(built) == {"CN=Root"}


def test_a_learned_namesake_that_no_ca_has_issued_signs_nothing(build):
    namesake = Authority.root("Other").intermediate("Middle")
    built = build([make_crl(namesake)], [namesake, MIDDLE])
    assert built.errors == ()
    assert built.lists == ()


def test_one_list_from_several_urls_counts_once(build):
    same = make_crl(ROOT, [5])
    assert build([same, same], own=[same]).unused == ()


def test_a_link_in_the_checkers_directory_is_not_followed(build, tmp_path):
    (tmp_path / "target").write_bytes(make_crl(ROOT))
    (tmp_path / "link").symlink_to(tmp_path / "target")
    [trust_set] = trust_sets_of(build.config).values()
    for fetched in (
        FetchedLists({tmp_path / "link": "http://a/"}),
        FetchedLists({}, {tmp_path / "link": "http://a/"}),
    ):
        built = SetBuilder(time.time(), Files()).build(
            trust_set, [parsed(ROOT.certificate)], fetched
        )
        assert built.lists == ()


def test_only_cas_below_the_trust_set_are_issuers():
    leaf = ROOT.issue(LeafSpec("leaf", purposes=("client",))).certificate
    candidates = [
        *map(der, (LOWER, MIDDLE, OTHER, OTHER.intermediate("Middle"), ROOT)),
        leaf.public_bytes(Encoding.DER),
        b"",
        b"\x30\x82",
    ]
    cas = [parsed(ROOT.certificate)]
    found = learned_issuers(cas, candidates)
    assert {each.der for each in found} == {der(MIDDLE), der(LOWER)}
    assert learned_issuers(cas, [der(LOWER)]) == ()
    # A CA file with an intermediate alone is enough.
    assert len(learned_issuers([parsed(MIDDLE.certificate)], [der(LOWER)])) == 1
