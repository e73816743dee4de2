"""Which chains are accepted: partial_chain, strict_x509, max_chain_depth, versions."""

from datetime import UTC, datetime, timedelta

import pytest

from relay.demo.ca import Authority, LeafSpec, to_pem
from relay.tls.stream import version as tls_version
from relay.tls.trust_store import valid_until
from tests.support.handshakes import (
    TLS12,
    TLS13,
    VERSIONS,
    begin_session,
    client_context,
    generation_of,
    meet_backend,
    meet_client,
    route_of,
    server_context,
    target_of,
)
from tests.support.pki import BACKEND_NAME, parsed

both_versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


def write_cas(directory, name, *authorities):
    file = directory / f"{name}.pem"
    file.write_bytes(to_pem(each.certificate for each in authorities))
    return file


def client_of(pki, authority, *, chain=False, **spec):
    leaf = authority.issue(LeafSpec("carla", purposes=("client",), **spec))
    return pki.write(leaf, with_intermediates=chain)


def backend_of(pki, authority, *, chain=False, **spec):
    leaf = authority.issue(LeafSpec("backend", dns=(BACKEND_NAME,), purposes=("server",), **spec))
    return pki.write(leaf, with_intermediates=chain)


def accepts(pki, files, version, **route):
    """The reason for a client; a resumption must end in the same way."""
    made = route_of(pki, **route)
    context = client_context(pki, files, version)
    with meet_client(made, context) as meeting:
        reason = meeting.reason
        detail = getattr(meeting.result, "detail", "")
    if reason == "done":
        session = begin_session(made, context)
        with meet_client(made, context, session=session) as meeting:
            assert (meeting.reason, meeting.resumed) == ("done", True)
    return reason, detail


def connects(pki, files, version, **pool):
    """The reason for a backend."""
    with meet_backend(target_of(pki, **pool), server_context(pki, files, version)) as meeting:
        return meeting.reason, getattr(meeting.result, "detail", "")


# An issuing CA without its root.


@both_versions
def test_an_issuing_ca_alone_needs_partial_chain(pki, version, tmp_path):
    alone = write_cas(tmp_path, "alone", pki.intermediate)
    client, backend = client_of(pki, pki.intermediate), backend_of(pki, pki.intermediate)
    for given, reason in ((True, "done"), (False, "unknown_ca")):
        found, detail = accepts(pki, client, version, client_ca=alone, partial_chain=given)
        assert found == reason
        assert given or "or set partial_chain = true" in detail
    assert connects(pki, backend, version, backend_ca=alone, partial_chain=True)[0] == "done"
    found, detail = connects(pki, backend, version, backend_ca=alone)
    assert found == "backend_unknown_ca"
    assert "or set partial_chain = true" in detail


@both_versions
def test_a_partial_chain_does_not_trust_the_cas_above(pki, version, tmp_path):
    """Neither the root nor another intermediate below it is trusted."""
    alone = write_cas(tmp_path, "alone", pki.intermediate)
    other = pki.authority.intermediate("Other Intermediate")
    for files in (pki.client, client_of(pki, other, chain=True)):
        reason, _ = accepts(pki, files, version, client_ca=alone, partial_chain=True)
        assert reason == "unknown_ca"


@both_versions
def test_a_partial_chain_ends_at_the_first_trusted_ca(pki, version, tmp_path):
    """An expired root beside its intermediate does not matter."""
    long_ago, yesterday = (datetime.now(UTC) - timedelta(days=days) for days in (60, 1))
    root = Authority.root("Old Root", not_before=long_ago, not_after=yesterday)
    below = root.intermediate("Young Intermediate")
    both = write_cas(tmp_path, "both", below, root)
    client = client_of(pki, below, chain=True)
    assert accepts(pki, client, version, client_ca=both, partial_chain=True)[0] == "done"
    assert accepts(pki, client, version, client_ca=both)[0] == "expired"
    route = route_of(pki, client_ca=both, partial_chain=True)
    subject = below.certificate.subject.public_bytes()
    ends = below.certificate.not_valid_after_utc.timestamp()
    assert route.trust.ca_valid_until[subject] == ends
    old = route_of(pki, client_ca=both).trust.ca_valid_until[subject]
    assert old == root.certificate.not_valid_after_utc.timestamp()


def test_a_ca_counts_as_long_as_itself_in_a_partial_chain(pki):
    chain = [parsed(each.certificate) for each in (pki.authority, pki.intermediate)]
    found = valid_until(chain, partial=True)
    assert found == {
        each.subject.public_bytes(): each.not_valid_after_utc.timestamp() for each in chain
    }


@both_versions
def test_a_leaf_in_client_ca_is_that_client_alone(pki, version, tmp_path):
    only = tmp_path / "only.pem"
    only.write_bytes(pki.client.certificate.read_bytes())
    route = {"client_ca": only, "partial_chain": True}
    with meet_client(route_of(pki, **route), client_context(pki, pki.client, version)) as met:
        assert met.reason == "done"
    assert accepts(pki, pki.client_spiffe, version, **route)[0] == "unknown_ca"
    assert accepts(pki, pki.client, version, client_ca=only)[0] == "unknown_ca"


@both_versions
def test_a_leaf_in_client_ca_cannot_issue(pki, version, tmp_path):
    owner = pki.client.issued
    below = Authority(owner.certificate, owner.key, ())
    only = tmp_path / "only.pem"
    only.write_bytes(pki.client.certificate.read_bytes())
    made = client_of(pki, below, chain=True)
    reason, detail = accepts(pki, made, version, client_ca=only, partial_chain=True)
    assert reason == "invalid_certificate"
    assert "it is not a CA: its basicConstraints say CA:FALSE" in detail


def test_other_rules_are_another_trust_generation(pki):
    routes = ({}, {"partial_chain": True}, {"strict_x509": True}, {"max_chain_depth": 3})
    digests = [route_of(pki, **each).trust.cas.digest for each in routes]
    assert len(set(digests)) == 4
    assert route_of(pki).trust.cas.digest == digests[0]


# Strict verification.


@both_versions
def test_strict_x509_refuses_what_the_default_accepts(pki, version):
    client = client_of(pki, pki.authority, key_identifiers=False)
    backend = backend_of(pki, pki.authority, key_identifiers=False)
    assert accepts(pki, client, version)[0] == "done"
    reason, detail = accepts(pki, client, version, strict_x509=True)
    assert (reason, detail) == (
        "invalid_certificate",
        "Missing Authority Key Identifier, which strict_x509 refuses",
    )
    assert accepts(pki, pki.client, version, strict_x509=True)[0] == "done"
    assert connects(pki, backend, version)[0] == "done"
    reason, detail = connects(pki, backend, version, strict_x509=True)
    assert reason == "backend_invalid_certificate"
    assert "which strict_x509 refuses" in detail
    assert connects(pki, pki.backend, version, strict_x509=True)[0] == "done"


def test_rules_of_one_route_do_not_reach_another(pki, tmp_path):
    """Both routes name the same file of CAs."""
    alone = write_cas(tmp_path, "alone", pki.intermediate)
    generation = generation_of(
        pki,
        routes=(
            {"sni": ("a.example.com",), "client_ca": alone, "partial_chain": True},
            {"sni": ("b.example.com",), "client_ca": alone},
        ),
    )
    first, second = generation.inbound["https"]
    client = client_context(pki, client_of(pki, pki.intermediate))
    for route, reason in ((first, "done"), (second, "unknown_ca"), (first, "done")):
        with meet_client(route, client) as meeting:
            assert meeting.reason == reason


# The length of a chain.


@both_versions
@pytest.mark.parametrize("below", [0, 1, 2])
def test_max_chain_depth_counts_the_cas(pki, version, below):
    authority = pki.authority
    for number in range(below):
        authority = authority.intermediate(f"Level {number}")
    client = client_of(pki, authority, chain=True)
    backend = backend_of(pki, authority, chain=True)
    for depth in (1, 2, 3, 10):
        enough = below + 1 <= depth
        said = f"its chain has more than {'1 CA' if depth == 1 else f'{depth} CAs'}"
        reason, detail = accepts(pki, client, version, max_chain_depth=depth)
        assert reason == ("done" if enough else "chain_too_long")
        assert enough or detail == f"{said} (max_chain_depth)"
        reason, detail = connects(pki, backend, version, max_chain_depth=depth)
        assert reason == ("done" if enough else "backend_chain_too_long")
        assert enough or said in detail


@both_versions
@pytest.mark.parametrize("root_sent", [True, False])
def test_an_unknown_ca_is_not_told_as_a_long_chain(pki, version, root_sent):
    """A chain of as many CAs as are accepted, whose root is not trusted."""
    intermediate = pki.foreign_authority.intermediate("Foreign Intermediate")
    authorities = (pki.foreign_authority, intermediate)
    for depth, authority in enumerate(authorities, 1):
        client = client_of(pki, authority, chain=True)
        if root_sent:
            client.certificate.write_bytes(
                client.certificate.read_bytes() + pki.foreign_ca.read_bytes()
            )
        reason, detail = accepts(pki, client, version, max_chain_depth=depth)
        assert reason == "unknown_ca"
        assert "max_chain_depth" not in detail


def test_max_chain_depth_counts_from_the_trusted_ca(pki, tmp_path):
    alone = write_cas(tmp_path, "alone", pki.intermediate)
    client = client_of(pki, pki.intermediate)
    rules = {"client_ca": alone, "partial_chain": True, "max_chain_depth": 1}
    assert accepts(pki, client, TLS13, **rules)[0] == "done"


# Versions.


@pytest.mark.parametrize(
    ("oldest", "newest", "peer", "reason"),
    [
        ("TLSv1.2", "TLSv1.2", None, "TLSv1.2"),
        ("TLSv1.2", "TLSv1.2", TLS13, "protocol_version"),
        ("TLSv1.2", "TLSv1.2", TLS12, "TLSv1.2"),
        ("TLSv1.3", "TLSv1.3", TLS12, "protocol_version"),
        ("TLSv1.3", "TLSv1.3", None, "TLSv1.3"),
        ("TLSv1.2", "TLSv1.3", None, "TLSv1.3"),
        ("TLSv1.2", "TLSv1.3", TLS12, "TLSv1.2"),
    ],
)
def test_max_version_holds_in_both_directions(pki, oldest, newest, peer, reason):
    settings = {"min_version": oldest, "max_version": newest}
    route, target = route_of(pki, **settings), target_of(pki, **settings)
    with meet_client(route, client_context(pki, pki.client, peer)) as meeting:
        agreed = meeting.reason == "done"
        assert (tls_version(meeting.ssl) if agreed else meeting.reason) == reason
    with meet_backend(target, server_context(pki, pki.backend, peer)) as meeting:
        agreed = meeting.reason == "done"
        expected = reason if agreed else f"backend_{reason}"
        assert (tls_version(meeting.ssl) if agreed else meeting.reason) == expected
