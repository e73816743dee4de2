"""The chain that OpenSSL verified: what `verification` collects of it."""

import ssl

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from relay.demo.ca import Authority, LeafSpec
from relay.tls import verification
from tests.support.handshakes import (
    VERSIONS,
    client_context,
    meet_client,
    route_of,
    session_of,
)

both_versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


class Watch:
    """A check that notes the chain of each client."""

    def __init__(self):
        self.chains = []

    def __call__(self, _who):
        self.chains.append(verification.accepted_chain())

    @property
    def names(self):
        return [[who.subject for who in chain] for chain in self.chains]


def deep_client(pki, depth):
    """A client below this many intermediates, which it sends."""
    authority = pki.authority
    for number in range(depth):
        authority = authority.intermediate(f"Level {number}")
    return pki.write(authority.issue(LeafSpec("deep", purposes=("client",))))


@both_versions
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_full_handshake_shows_the_chain_up_to_the_root(pki, version, depth):
    watch, route = Watch(), route_of(pki)
    context = client_context(pki, deep_client(pki, depth), version)
    for _ in range(3):
        with meet_client(route, context, check=watch) as meeting:
            assert meeting.reason == "done"
    levels = [f"CN=Level {number}" for number in reversed(range(depth))]
    assert watch.names == [[*levels, "CN=Test CA"]] * 3


@both_versions
def test_a_resumed_handshake_shows_no_chain(pki, version):
    watch, route = Watch(), route_of(pki)
    context = client_context(pki, pki.client, version)
    with meet_client(route, context, check=watch) as meeting:
        session = session_of(meeting)
    with meet_client(route, context, session=session, check=watch) as meeting:
        assert meeting.resumed
    assert watch.names == [["CN=Test CA"], []]


def test_a_refused_chain_does_not_show_in_the_next_handshake(pki):
    # Its issuers pass, its signature does not: this leaves a part of a chain behind.
    watch, route = Watch(), route_of(pki)
    bad = pki.write(pki.intermediate.issue(LeafSpec("bad", purposes=("client",))))
    der = bytearray(bad.issued.certificate.public_bytes(Encoding.DER))
    der[-1] ^= 1
    _, above = bad.certificate.read_text().split("-----END CERTIFICATE-----", 1)
    bad.certificate.write_text(ssl.DER_cert_to_PEM_cert(bytes(der)) + above)
    with meet_client(route, client_context(pki, bad), check=watch) as meeting:
        assert meeting.reason == "invalid_certificate"
    with meet_client(route, client_context(pki, pki.client), check=watch):
        pass
    assert watch.names == [["CN=Test CA"]]


def test_namesakes_in_chains_are_told_apart_by_their_keys(pki):
    watch = Watch()
    files = []
    for _ in range(2):
        below = pki.authority.intermediate("Twin")
        files.append(pki.write(below.issue(LeafSpec("one", purposes=("client",)))))
    route = route_of(pki)
    for each in files * 2:
        with meet_client(route, client_context(pki, each), check=watch):
            pass
    keys = [chain[0].spki_sha256 for chain in watch.chains]
    assert keys[:2] == keys[2:]
    assert keys[0] != keys[1]


def test_more_anchors_than_are_remembered_are_still_told_apart(pki, tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "_MAX_ANCHORS", 2)
    watch = Watch()
    roots = [Authority.root(f"Root {number}") for number in range(4)]
    ca = tmp_path / "roots.pem"
    ca.write_bytes(b"".join(each.certificate.public_bytes(Encoding.PEM) for each in roots))
    route = route_of(pki, client_ca=ca)
    for each in roots * 2:
        files = pki.write(each.issue(LeafSpec("one", purposes=("client",))))
        with meet_client(route, client_context(pki, files), check=watch):
            pass
    assert watch.names == [[f"CN=Root {number}"] for number in range(4)] * 2
    assert len(verification._anchors) <= 2


def test_a_bug_in_the_check_admits_nobody_and_is_raised(pki):
    def check(_who):
        raise RuntimeError("a bug")

    with (
        pytest.raises(RuntimeError, match="a bug"),
        meet_client(route_of(pki), client_context(pki, pki.client), check=check),
    ):
        pass


def test_what_a_certificate_says_for_lists(pki):
    watch = Watch()
    files = pki.client_intermediate_sent
    with meet_client(route_of(pki), client_context(pki, files), check=watch) as meeting:
        leaf = meeting.identity
    [(issuer, root)] = watch.chains
    assert leaf.for_lists.issuer_key_id != b""
    assert leaf.issuer_der == issuer.for_lists.subject
    assert (leaf.for_lists.is_ca, issuer.for_lists.is_ca, root.for_lists.is_ca) == (
        False,
        True,
        True,
    )
    number = files.issued.certificate.serial_number
    assert int.from_bytes(leaf.for_lists.serial) == number
    assert leaf.for_lists.points == b""
