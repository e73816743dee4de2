"""How much a peer may send as certificates: a limit before OpenSSL parses them."""

import contextlib
import ssl
import threading

import pytest

from relay.errors import Reason, Side
from relay.tls import stepwise, stream
from relay.tls.explain import Failure
from relay.tls.stepwise import Handshaker, unread_bytes
from relay.worker.connection import Connection
from tests.support.fragments import FragmentingClient
from tests.support.handshakes import accept_on, route_of, tcp_pair, wait_readable
from tests.support.odd import CN, SAN, Odd, attribute, dns, extension, name, write_odd
from tests.support.peer import PATIENCE_S
from tests.support.strangers import NAME, knock
from tests.support.worker import client_context

SAID = "the client sends more than 32768 bytes of certificates (limits.certificate_chain_bytes)"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
both_versions = pytest.mark.parametrize("version", VERSIONS)


def of_size(directory, size, authority):
    """A client's certificate of about this many bytes."""
    names = dns("backend.example.com", *["a" * 60] * (size // 62))
    odd = Odd(subject=name(attribute(CN, "long")), san=extension(SAN, names))
    return write_odd(directory, f"long{size}", odd, authority)


@pytest.fixture
def connect(start, backend, pki, tmp_path, stack):
    """A relay and a client whose certificate, of this many bytes, is not sent yet."""

    def connect(version, size, *, authority=None, top=""):
        relay = start([backend().address], top=top)
        sock = stack.enter_context(knock(relay.port))
        files = of_size(tmp_path, size, authority or pki.authority)
        context = client_context(pki, files, version=version)
        return relay, FragmentingClient(sock, context, NAME, 16_000, tmp_path / "keys")

    return connect


def deliver(client):
    """Send the client's flight, as far as the relay takes it."""
    with contextlib.suppress(OSError):
        client.sock.sendall(client.flight)
        while client.sock.recv(65536):
            pass


@both_versions
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "self-made"])
def test_a_chain_that_is_too_long_is_refused_as_such(connect, pki, version, signed):
    authority = pki.authority if signed else pki.foreign_authority
    relay, client = connect(version, 48_000, authority=authority)
    deliver(client)
    record = relay.record()
    assert (record["reason"], record["side"]) == ("chain_too_long", "inbound")
    assert record["detail"] == SAID
    assert "limits.certificate_chain_bytes" in record["remedy"]


@both_versions
def test_a_chain_as_long_as_is_allowed_comes_in(connect, version):
    _, client = connect(version, 32_000)
    client.sock.sendall(client.flight)
    assert client.exchange(b"hello", 5) == b"hello"


@both_versions
@pytest.mark.parametrize("piece", [100, 3_000, 9_000])
@pytest.mark.parametrize("size", [31_000, 48_000])
def test_what_comes_in_pieces_is_added_up(paced, version, piece, size):
    progress = paced(version, size, piece)
    assert progress == (stream.DONE if size < 32_768 else Failure(Reason.CHAIN_TOO_LONG, SAID))


@both_versions
@pytest.mark.parametrize("piece", [600, 3_000, 7_000])
def test_bytes_that_arrive_during_a_read_are_no_record_header(paced, monkeypatch, version, piece):
    """OpenSSL got a part of a record after the kernel was asked how much there is.

    The rest does not start with a record header.
    """
    asked = []

    def early(fd):
        asked.append(fd)
        return 0 if len(asked) == 1 else unread_bytes(fd)

    monkeypatch.setattr(stepwise, "unread_bytes", early)
    assert paced(version, 31_000, piece, rest=True) is stream.DONE
    assert len(asked) > 1


@pytest.fixture
def paced(pki, stack, tmp_path):
    """The result of a handshake whose last flight comes in pieces, one by one."""

    def handshake(version, size, piece, *, rest=False):
        ours, theirs = (stack.enter_context(sock) for sock in tcp_pair())
        theirs.settimeout(PATIENCE_S)
        end, handshaker = Connection(ours), Handshaker()
        end.ssl = accept_on(route_of(pki), ours)
        stack.callback(stream.free, end.ssl, established=False)
        context = client_context(pki, of_size(tmp_path, size, pki.authority), version=version)
        made = []

        def begin():
            made.append(FragmentingClient(theirs, context, NAME, 16_000, tmp_path / "keys"))

        client = threading.Thread(target=begin, daemon=True)
        client.start()
        wait_readable(ours)
        progress = handshaker.step(end, Side.INBOUND, unread=unread_bytes(end.fd))
        client.join(PATIENCE_S)
        flight = made[0].flight
        pieces = [flight[at : at + piece] for at in range(0, len(flight), piece)]
        if rest:
            pieces = [flight[:piece], flight[piece:]]
        for each in pieces:
            theirs.sendall(each)
            wait_readable(ours)
            while (progress := handshaker.step(end, Side.INBOUND)) is stream.STEP_MORE:
                pass
            if progress is not stream.STEP_WANT_READ:
                break
        return progress

    return handshake


@both_versions
@pytest.mark.parametrize("size", [6_000, 14_000])
def test_the_limit_is_the_configured_one(connect, version, size):
    relay, client = connect(version, size, top="[limits]\ncertificate_chain_bytes = 8192")
    if size < 8192:
        client.sock.sendall(client.flight)
        assert client.exchange(b"hello", 5) == b"hello"
    else:
        deliver(client)
        assert relay.record()["reason"] == "chain_too_long"


@both_versions
def test_a_backend_whose_chain_is_too_long_is_told_as_such(start, backend, call, long, version):
    relay = start([backend(files=long, version=version).address])
    client = call(relay)
    with contextlib.suppress(OSError):
        client.send(b"hello")
        client.receive(5)
    client.close()
    record = relay.record()
    assert (record["reason"], record["side"]) == ("backend_chain_too_long", "outbound")
    assert "b1" in record["detail"]
    assert "more than 32768 bytes of certificates" in record["detail"]


@pytest.fixture
def long(pki, tmp_path):
    """A certificate beyond every allowance."""
    return of_size(tmp_path, 80_000, pki.authority)


def test_more_than_openssl_takes_is_told_in_the_same_words(connect):
    top = "[limits]\ncertificate_chain_bytes = 102400"
    relay, client = connect(ssl.TLSVersion.TLSv1_3, 103_000, top=top)
    deliver(client)
    record = relay.record()
    assert record["reason"] == "chain_too_long"
    assert "OpenSSL's own limit" in record["detail"]
