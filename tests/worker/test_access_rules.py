"""allow, deny and the rules for chains, with a real worker: full and resumed."""

from ssl import SSLError, TLSVersion

import pytest

from relay.demo.ca import LeafSpec
from tests.support.pki import BACKEND_NAME
from tests.support.worker import client_context, connect, receive

both_versions = pytest.mark.parametrize("version", [TLSVersion.TLSv1_2, TLSVersion.TLSv1_3])


def ask(relay, context, session=None):
    """A short session: the answer, and the session that it leaves."""
    with connect(relay.port, context, session=session) as client:
        client.sendall(b"hello")
        said = receive(client, 5)
        found = said, client.session, client.session_reused
        client.unwrap()
        return found


def refused(relay, context, count=1):
    """The record of a client that the route keeps out."""
    with pytest.raises((SSLError, OSError)):
        ask(relay, context)
    return relay.record(count - 1)


@both_versions
def test_a_client_that_is_denied_is_told_as_such(start, backend, pki, version):
    rules = 'allow = { san_dns = ["*.corp"] }\ndeny = { cn = ["ALICE"], ip = ["10.0.0.0/8"] }'
    relay = start([backend().address], route=rules)
    record = refused(relay, client_context(pki, pki.client_spiffe, version=version))
    assert (record["reason"], record["side"]) == ("not_allowed", "inbound")
    assert record["detail"].startswith('deny.cn has "ALICE"; names in the certificate: alice')
    assert "remove the entry of deny" in record["remedy"]


@both_versions
def test_a_client_that_deny_does_not_name_comes_in(start, backend, pki, version):
    relay = start([backend().address], route='deny = { cn = ["mallory"], ou = ["dev"] }')
    context = client_context(pki, pki.client_spiffe, version=version)
    said, session, _ = ask(relay, context)
    assert said == b"hello"
    assert ask(relay, context, session)[::2] == (b"hello", True)


@both_versions
@pytest.mark.parametrize("kind", ["issuer", "serial"])
def test_an_issuer_or_a_serial_lets_a_client_in(start, backend, pki, version, kind):
    serial = f"{pki.client.issued.certificate.serial_number:x}"
    entry = {"issuer": "CN=Test CA", "serial": serial}[kind]
    relay = start([backend().address], route=f'allow = {{ {kind} = ["{entry}"] }}')
    context = client_context(pki, pki.client, version=version)
    said, session, _ = ask(relay, context)
    assert said == b"hello"
    assert ask(relay, context, session)[::2] == (b"hello", True)


@both_versions
def test_a_client_of_another_issuer_is_told_its_own(start, backend, pki, version):
    relay = start([backend().address], route='allow = { issuer = ["CN=Other CA"] }')
    record = refused(relay, client_context(pki, pki.client, version=version))
    assert "no entry of allow matches" in record["detail"]
    assert "issuer CN=Test CA, key id " in record["detail"]


@both_versions
@pytest.mark.parametrize("consent", [True, False])
def test_a_server_certificate_comes_in_by_consent(start, backend, pki, version, consent):
    context = client_context(pki, pki.client_wrong_purpose, version=version)
    rules = 'allow = { cn = ["alice"] }'
    if consent:
        rules += "\naccept_server_certificates = true"
    relay = start([backend().address], route=rules)
    if consent:
        said, session, _ = ask(relay, context)
        assert said == b"hello"
        assert ask(relay, context, session)[::2] == (b"hello", True)
    else:
        record = refused(relay, context)
        assert record["reason"] == "wrong_purpose"
        assert "public CAs have issued certificates for servers only" in record["detail"]


@both_versions
def test_an_issuing_ca_alone_serves_both_directions(start, backend, pki, version, tmp_path):
    alone = pki.intermediate.write(tmp_path / "alone.pem")
    leaf = LeafSpec("backend", dns=(BACKEND_NAME,), purposes=("server",))
    files = pki.write(pki.intermediate.issue(leaf), with_intermediates=False)
    rules = "partial_chain = true\nmax_chain_depth = 1"
    relay = start(
        [backend(files=files).address],
        client_ca=alone,
        backend_ca=alone,
        route=rules,
        pool=rules,
    )
    context = client_context(pki, pki.client_intermediate_missing, version=version)
    said, session, _ = ask(relay, context)
    assert said == b"hello"
    assert ask(relay, context, session)[::2] == (b"hello", True)
    record = refused(relay, client_context(pki, pki.client, version=version), 3)
    assert record["reason"] == "unknown_ca"


@both_versions
def test_strict_x509_keeps_malformed_clients_out(start, backend, pki, version):
    spec = LeafSpec("carla", purposes=("client",), key_identifiers=False)
    client = pki.write(pki.authority.issue(spec))
    relay = start([backend().address], route="strict_x509 = true")
    record = refused(relay, client_context(pki, client, version=version))
    assert record["reason"] == "invalid_certificate"
    assert "which strict_x509 refuses" in record["detail"]


@both_versions
def test_strict_x509_keeps_malformed_backends_out(start, backend, pki, version):
    names = {"dns": (BACKEND_NAME,), "purposes": ("server",)}
    server = pki.write(pki.authority.issue(LeafSpec("b", key_identifiers=False, **names)))
    relay = start([backend(files=server).address], pool="strict_x509 = true")
    record = refused(relay, client_context(pki, pki.client, version=version))
    assert (record["reason"], record["side"]) == ("backend_invalid_certificate", "outbound")
    assert "which strict_x509 refuses" in record["detail"]
