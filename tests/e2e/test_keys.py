"""A relay whose keys are encrypted, with their passphrases as systemd's credentials."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from relay.demo.ca import LeafSpec
from tests.support.client import context_of, talk
from tests.support.gateway import wait_until
from tests.support.pki import GATEWAY_NAMES, write
from tests.support.tables import listener_table, pool_table, route_table

PASSPHRASES = {"gateway": b"open sesame 1", "machine": b"open sesame 2"}


@pytest.fixture
def credentials(tmp_path):
    """A directory as systemd makes it for a service, with both passphrases."""
    directory = tmp_path / "credentials"
    directory.mkdir()
    for name, passphrase in PASSPHRASES.items():
        (directory / name).write_bytes(passphrase + b"\n")
        (directory / name).chmod(0o440)
    return directory


def encrypted(files, passphrase, file):
    file.write_bytes(
        files.issued.key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase)
        )
    )
    return replace(files, key=file)


@pytest.fixture
def body(pki, echo, tmp_path):
    gateway = encrypted(pki.gateway, PASSPHRASES["gateway"], tmp_path / "gateway.key")
    machine = encrypted(pki.machine, PASSPHRASES["machine"], tmp_path / "machine.key")
    route = route_table(pki, files=gateway, key_passphrase_file="credential:gateway")
    return listener_table(route) + pool_table(
        pki, [echo.address], files=machine, key_passphrase_file="credential:machine"
    )


def test_encrypted_keys_serve_before_and_after_a_reload(start, pki, body, credentials):
    gateway = start(body, env={"CREDENTIALS_DIRECTORY": str(credentials)})
    assert talk(pki, gateway.port()) == b"hello"
    gateway.write(body, timeouts={"idle_s": 299})
    done = gateway.command("reload")
    assert done.returncode == 0, done
    assert talk(pki, gateway.port()) == b"hello"
    checked = gateway.command("check")
    assert checked.returncode == 0, checked
    told = gateway.log() + checked.stdout + checked.stderr
    assert "open sesame" not in told


def test_a_reload_with_a_wrong_passphrase_keeps_the_old_one(start, pki, body, credentials):
    gateway = start(body, env={"CREDENTIALS_DIRECTORY": str(credentials)})
    wrong = credentials / "gateway"
    wrong.chmod(0o600)
    wrong.write_bytes(b"open barley\n")
    gateway.write(body, timeouts={"idle_s": 299})
    done = gateway.command("reload")
    assert done.returncode != 0
    assert f"the passphrase in credential:gateway ({wrong}) does not decrypt" in done.stderr
    assert "barley" not in done.stderr + gateway.log()
    assert talk(pki, gateway.port()) == b"hello"


def test_a_key_and_its_passphrase_are_renewed_without_a_reload(
    start, pki, echo, tmp_path, credentials
):
    """Also if they are written one after the other."""
    spec = LeafSpec("gateway", dns=GATEWAY_NAMES, purposes=("server",))
    shown = write(tmp_path, "gateway", pki.authority.issue(spec))
    secret = tmp_path / "secret"
    secret.write_bytes(b"old one\n")
    secret.chmod(0o600)
    files = encrypted(shown, b"old one", tmp_path / "encrypted.key")
    route = route_table(pki, files=files, key_passphrase_file=secret)
    body = listener_table(route) + pool_table(pki, [echo.address])
    gateway = start(body, relay={"watch_s": 0.2})
    new = pki.authority.issue(spec)
    write(tmp_path, "gateway", new)
    told = "does not belong to the certificate"
    wait_until("the mixture is told", lambda: told in gateway.log(), detail=gateway.log)
    encrypted(replace(files, issued=new), b"new one", files.key)
    secret.write_bytes(b"new one\n")
    renewed = "renewed in place"
    wait_until("all three are in use", lambda: renewed in gateway.log(), detail=gateway.log)
    context = context_of(pki)
    with context.wrap_socket(
        socket.create_connection(("127.0.0.1", gateway.port()), 20),
        server_hostname="app.example.com",
    ) as tls:
        assert int(tls.getpeercert()["serialNumber"], 16) == new.certificate.serial_number
    assert "new one" not in gateway.log()
    assert gateway.endpoints["generation"] == 1
