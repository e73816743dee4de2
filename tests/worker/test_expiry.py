"""Sessions whose certificate expires while they are open, in one worker.

Most tests set the workers' clock; a jump counts only after a time, which is short here.
"""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from relay.demo.ca import Authority, LeafSpec
from relay.worker import expiry
from tests.support.clock import Clock
from tests.support.pki import write
from tests.support.renewals import renewal
from tests.support.worker import client_context, wait_until

HOUR_S = 3600
# Of a certificate that really expires: a handshake on a busy machine ends before.
VALID_S = 5


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(expiry, "time", made)
    monkeypatch.setattr(expiry, "SETTLE_S", 0.0)
    monkeypatch.setattr(expiry, "JITTER_S", 0.0)
    return made


def in_s(seconds):
    return (datetime.now(UTC) + timedelta(seconds=seconds)).replace(microsecond=0)


@pytest.fixture
def client_for(pki, tmp_path):
    """A context of a client whose certificate is valid for this long."""

    def client_for(seconds, authority=pki.authority):
        spec = LeafSpec("alice", purposes=("client",), not_after=in_s(seconds))
        return client_context(pki, write(tmp_path, f"for-{seconds}", authority.issue(spec)))

    return client_for


def echoes(client):
    client.send(b"hello")
    return client.receive(5) == b"hello"


def test_a_session_ends_when_its_certificate_expires(start, backend, call, clock, client_for):
    relay = start([backend().address])
    short, long = call(relay, context=client_for(HOUR_S)), call(relay)
    assert echoes(short)
    assert echoes(long)
    clock.shift(HOUR_S - 60)
    relay.let_it_turn(2)
    assert echoes(short)
    clock.shift(HOUR_S + 1)
    assert short.end()[0] == b""
    record = relay.record()
    assert (record["reason"], record["side"]) == ("expired_during_session", "inbound")
    assert record["detail"].startswith("valid until 20")
    assert 'at_expiry = "finish"' in record["remedy"]
    assert echoes(long)


@pytest.mark.parametrize("route", ['at_expiry = "finish"', "expiry_grace_s = 86400"])
def test_a_session_may_outlive_its_certificate(start, backend, call, clock, client_for, route):
    relay = start([backend().address], route=route)
    client = call(relay, context=client_for(HOUR_S))
    clock.shift(2 * HOUR_S)
    relay.let_it_turn(2)
    assert echoes(client)


def test_a_grace_time_ends(start, backend, call, clock, client_for):
    relay = start([backend().address], route="expiry_grace_s = 7200")
    client = call(relay, context=client_for(HOUR_S))
    clock.shift(2 * HOUR_S)
    relay.let_it_turn(2)
    assert echoes(client)
    clock.shift(3 * HOUR_S + 1)
    assert client.end()[0] == b""


def test_an_intermediate_that_expires_ends_sessions_below_it(
    start, backend, pki, call, clock, client_for
):
    relay = start([backend().address])
    below = pki.authority.intermediate("Short", not_after=in_s(HOUR_S))
    client = call(relay, context=client_for(5 * HOUR_S, below))
    assert echoes(client)
    clock.shift(HOUR_S + 1)
    assert client.end()[0] == b""
    assert relay.record()["reason"] == "expired_during_session"


def test_sessions_go_on_under_a_ca_that_was_renewed(
    start, backend, pki, call, clock, client_for, tmp_path
):
    """The new certificate of the CA has the same key, and is valid for longer."""
    old = Authority.root("Renewed", not_after=in_s(HOUR_S))
    new = _again(old)
    files = []
    for number, one in enumerate((old.certificate, new)):
        files.append(tmp_path / f"ca-{number}.pem")
        files[-1].write_bytes(pki.ca.read_bytes() + one.public_bytes(Encoding.PEM))
    relay = start([backend().address])
    relay.update(renewal(cas=(pki.ca, files[0])))
    client = call(relay, context=client_for(5 * HOUR_S, old))
    assert echoes(client)
    relay.update(renewal(cas=(pki.ca, files[1])))
    clock.shift(HOUR_S + 1)
    relay.let_it_turn(2)
    assert echoes(client)


def _again(authority):
    old = authority.certificate
    builder = x509.CertificateBuilder(
        old.issuer,
        old.subject,
        old.public_key(),
        x509.random_serial_number(),
        old.not_valid_before_utc,
        in_s(50 * HOUR_S),
    )
    for each in old.extensions:
        builder = builder.add_extension(each.value, each.critical)
    return builder.sign(authority.key, hashes.SHA256())


def test_a_clock_that_jumps_and_comes_back_ends_no_session(
    start, backend, call, clock, client_for, monkeypatch
):
    monkeypatch.setattr(expiry, "SETTLE_S", 60.0)
    relay = start([backend().address])
    client = call(relay, context=client_for(HOUR_S))
    relay.let_it_turn(2)  # it has read the clock once
    clock.shift(30 * 86_400)
    wait_until(lambda: "the clock was set +2592000 s" in relay.messages(), "the message")
    relay.let_it_turn(2)
    clock.shift(0)
    relay.let_it_turn(2)
    assert echoes(client)
    assert "the clock was set -2592000 s" in relay.messages()


def test_sessions_of_one_expiry_do_not_end_at_one_instant(
    start, backend, call, clock, client_for, monkeypatch
):
    monkeypatch.setattr(expiry, "JITTER_S", 1_000.0)
    relay = start([backend().address])
    context = client_for(HOUR_S)
    clients = [call(relay, context=context) for _ in range(20)]
    ended = []
    for after_s in (0, 400, 1_000):
        clock.shift(HOUR_S + after_s)
        relay.let_it_turn(2)
        ended.append(relay.value("relay_sessions_closed_total", "expired_during_session"))
    assert ended[0] <= 2
    assert ended[-1] == 20
    assert 6 <= ended[1] <= 10
    del clients


def test_a_certificate_really_expires(start, backend, call, client_for):
    """Without a set clock: the session ends within JITTER_S and two ticks."""
    relay = start([backend().address])
    client = call(relay, context=client_for(VALID_S))
    assert echoes(client)
    assert client.end()[0] == b""
    assert relay.record()["reason"] == "expired_during_session"
    assert relay.record()["duration_s"] < VALID_S + expiry.JITTER_S + 3
