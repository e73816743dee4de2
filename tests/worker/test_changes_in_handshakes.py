"""What changes between a client's certificate and the end of its handshake."""

import contextlib
import ssl
import time

import pytest

from relay.core.kicks import Kick, parse_target
from relay.worker.kicked import KickUpdate
from tests.support.crls import make_crl
from tests.support.peer import dial
from tests.support.renewals import renewal
from tests.support.worker import client_context

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def last_flight(client):
    """The records that the client sends last: its certificate to Finished."""
    while True:
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.do_handshake()
        data = client._out.read()
        if data:
            return split(data)
        client._in.write(client.sock.recv(65536))


def split(data):
    records = []
    while data:
        size = 5 + int.from_bytes(data[3:5])
        records.append(data[:size])
        data = data[size:]
    return records


def kick(_relay, _pki):
    now = time.monotonic()
    return KickUpdate((Kick(parse_target("CN=alice"), "root", "", now, now + 600),))


CHANGES = {
    "kick": (lambda relay, pki, _: relay.update(kick(relay, pki)), "kicked"),
    "CA": (lambda relay, pki, _: relay.update(renewal(cas=(pki.ca, pki.foreign_ca))), "unknown_ca"),
    "list": (lambda relay, _, publish: (publish(), relay.renew_lists()), "revoked"),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("change", "reason"), CHANGES.values(), ids=CHANGES)
def test_a_change_after_the_certificate_was_verified_counts(
    start, backend, pki, tmp_path, version, change, reason
):
    """OpenSSL has verified it, and it was admitted: only Finished is missing."""
    crl = tmp_path / "a.crl"
    crl.write_bytes(make_crl(pki.authority, number=1))

    def publish():
        crl.write_bytes(make_crl(pki.authority, [pki.client.issued.certificate], number=2))

    relay = start([backend().address], route=f'client_crl = ["{crl}"]')
    context = client_context(pki, pki.client, version=version)
    client = dial(relay.port, context, hello_only=True)
    *first, last = last_flight(client)
    assert first, "the certificate comes in a record of its own"
    client.sock.sendall(b"".join(first))
    relay.let_it_turn()  # the worker has read them
    change(relay, pki, publish)
    client.sock.sendall(last)
    with contextlib.suppress(ssl.SSLError, EOFError, OSError):
        client.handshake()
        assert client.end()[0] == b""
    client.sock.close()
    record = relay.record()
    assert (record["reason"], record["subject"]) == (reason, "CN=alice")
    assert record["backend"] == ""


@pytest.mark.parametrize("version", VERSIONS)
def test_without_a_change_the_same_client_is_served(start, backend, pki, version):
    relay = start([backend().address])
    client = dial(relay.port, client_context(pki, pki.client, version=version), hello_only=True)
    *first, last = last_flight(client)
    client.sock.sendall(b"".join(first))
    relay.let_it_turn()
    client.sock.sendall(last)
    client.handshake()
    client.send(b"hello")
    assert client.receive(5) == b"hello"
    client.close()
