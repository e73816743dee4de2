"""A relay whose key never leaves a TPM, with the provider of tpm2-openssl."""

from __future__ import annotations

import ssl

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.support.client import talk
from tests.support.tables import listener_table, pool_table, route_table
from tests.support.tpm import Ed25519Ca, needs_tpm, running_tpm

pytestmark = needs_tpm

SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
PASSWORD = "open sesame"


@pytest.fixture
def tpm():
    with running_tpm() as found:
        yield found


@pytest.fixture
def ca(tmp_path):
    return Ed25519Ca(tmp_path)


@pytest.fixture
def begin(start, pki, make_backend, tpm, ca):
    """`begin(key, passphrase_file)`: a relay with this key of the TPM."""

    def launch(key, auth="", **route):
        backend = make_backend(files=ca.issue("backend", SERVER, None), client_ca=ca.file)
        shown = ca.issue("gateway", SERVER, tpm.public_key(key, auth))
        pair = {"certificate": shown.certificate, "private_key": key}
        body = listener_table(route_table(pki, client_ca=ca.file, **pair, **route))
        machine = ca.issue("machine", CLIENT, None)
        body += pool_table(pki, [backend.address], files=machine, backend_ca=ca.file)
        return body, start(body, env=tpm.environment, relay={"workers": 1})

    return launch


@pytest.fixture
def client(ca):
    """A context that presents a client certificate of the CA."""
    shown = ca.issue("client", CLIENT, None)
    context = ssl.create_default_context(cafile=str(ca.file))
    context.load_cert_chain(shown.certificate, shown.key)
    return context


def test_a_key_of_a_tpm_serves_before_and_after_reloads(begin, pki, tpm, client):
    body, gateway = begin(tpm.make_key())
    for _ in range(10):
        assert talk(pki, gateway.port(), context=client) == b"hello"
    for idle_s in (299, 298, 297):
        gateway.write(body, timeouts={"idle_s": idle_s}, relay={"workers": 1})
        done = gateway.command("reload")
        assert done.returncode == 0, done
        for _ in range(5):
            assert talk(pki, gateway.port(), context=client) == b"hello"


def test_check_says_what_it_needs_to_load_the_key(begin, tpm):
    key = tpm.make_key()
    _, gateway = begin(key)
    checked = gateway.command("check")
    assert checked.returncode == 0, checked
    assert f"{key}: is a key of an OpenSSL provider: each process" in checked.stdout
    del gateway.environment["OPENSSL_CONF"]
    checked = gateway.command("check")
    assert checked.returncode == 78
    line, _ = checked.stderr.splitlines()
    assert f'the "TSS2 PRIVATE KEY" in {key} is a key of an OpenSSL provider' in line
    assert "OPENSSL_CONF is not set" in line


def test_the_password_of_a_key_comes_from_the_passphrase_file(begin, pki, tpm, client, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(f"{PASSWORD}\n")
    secret.chmod(0o600)
    key = tpm.make_key(auth=PASSWORD)
    _, gateway = begin(key, PASSWORD, key_passphrase_file=secret)
    assert talk(pki, gateway.port(), context=client) == b"hello"
    assert PASSWORD not in gateway.log()


def test_the_key_of_another_certificate_is_refused(begin, pki, tpm, client):
    key, other = tpm.make_key(), tpm.make_key("other")
    body, gateway = begin(key)
    gateway.write(body.replace(str(key), str(other)), relay={"workers": 1})
    done = gateway.command("reload")
    assert done.returncode != 0
    assert f"the private key in {other} does not belong to the certificate" in done.stderr
    assert talk(pki, gateway.port(), context=client) == b"hello"
