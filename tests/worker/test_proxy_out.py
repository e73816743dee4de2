"""The PROXY header that backends get, read by a receiver of the tests' own."""

import contextlib
import re
import socket
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.support import ready
from tests.support.peer import PATIENCE_S, Peer
from tests.support.pki import Files
from tests.support.plain import UnixDoor, hello, passthrough_toml, unix_toml
from tests.support.plain import receive as receive_exactly
from tests.support.programs import needs, s_client
from tests.support.proxy_header import HeaderBackend, read_header, receive_header
from tests.support.worker import RunningWorker, client_context, wait_until

V2 = 'send_proxy = "v2"'
INSIDE = 'send_proxy = "v2-inside-tls"'


@pytest.fixture
def receive(door):
    """A backend's door, and what reads a header and then does the handshake."""

    def receive(back):
        sock = back.accept_tcp()
        header = receive_header(sock)
        return header, Peer(sock, back.context, server_side=True)

    return receive


def read_inside(server):
    """The header that is the first data inside TLS, and what came after it."""
    data = b""

    def read(size):
        nonlocal data
        while len(data) < size:
            data += server.receive_some()
        taken, data = data[:size], data[size:]
        return taken

    return read_header(read), data


def relayed(client, server):
    """Whether bytes pass in both directions."""
    client.send(b"request")
    assert server.receive(7) == b"request"
    server.send(b"response")
    assert client.receive(8) == b"response"


def test_v1_has_the_addresses(start, door, call, receive):
    back = door()
    relay = start([back.address], pool='send_proxy = "v1"')
    client = call(relay)
    header, server = receive(back)
    assert header.family == "TCP4"
    assert header.source == client.sock.getsockname()
    assert header.destination == client.sock.getpeername()
    relayed(client, server)
    client.close()
    server.close()
    record = relay.record(0)
    assert (record["bytes_in"], record["bytes_out"]) == (7, 8)


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_v2_has_every_part(start, door, call, receive, pki, version):
    back = door(alpn=("http/1.1",))
    relay = start([back.address], pool=V2, route='alpn = ["http/1.1"]')
    context = client_context(pki, pki.client, alpn=("http/1.1",))
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    client = call(relay, context=context)
    header, server = receive(back)
    relayed(client, server)
    assert (header.command, header.family) == ("PROXY", "TCP4")
    assert header.source == client.sock.getsockname()
    assert header.destination == client.sock.getpeername()
    client.close()
    server.close()
    record = relay.record(0)
    assert header.tlvs["alpn"] == b"http/1.1"
    assert header.tlvs["authority"] == b"app.example.com"
    assert header.tlvs["unique_id"].decode() == record["session"]
    assert (header.client, header.verify) == (0x07, 0)
    assert {name: value.decode() for name, value in header.ssl.items()} == {
        "version": record["tls_version"],
        "cipher": record["cipher"],
        "group": record["group"],
        "cn": "alice",
        "key_alg": "EC256",
        "sig_alg": "ecdsa-with-SHA256",
        "sig_scheme": "ecdsa_secp256r1_sha256",
    }


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_resumed_session_shows_its_certificate(start, door, call, receive, pki, version):
    back = door()
    relay = start([back.address], pool=V2 + "\nsend_proxy_certificate = true")
    context = client_context(pki, pki.client)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    headers = []
    session = None
    for number in range(2):
        client = call(relay, context=context, session=session)
        header, server = receive(back)
        headers.append(header)
        relayed(client, server)
        session = client.tls.session
        client.close()
        server.close()
        assert relay.record(number)["resumed"] is bool(number)
    full, resumed = headers
    assert (full.client, resumed.client) == (0x07, 0x05)
    assert "sig_scheme" in full.ssl
    assert "sig_scheme" not in resumed.ssl, "nothing was signed"
    assert full.verify == resumed.verify == 0
    assert full.ssl["cn"] == resumed.ssl["cn"] == b"alice"
    der = ssl.PEM_cert_to_DER_cert(pki.client.certificate.read_text().partition("\n\n")[0])
    assert full.ssl["certificate"] == resumed.ssl["certificate"] == der


def test_only_chosen_parts_are_sent(start, door, call, receive):
    back = door()
    relay = start([back.address], pool=V2 + '\nsend_proxy_tlvs = ["authority", "ssl_cn"]')
    call(relay)
    header, _ = receive(back)
    assert set(header.tlvs) == {"authority", "ssl"}
    assert set(header.ssl) == {"cn"}


def test_an_empty_list_leaves_the_addresses(start, door, call, receive):
    back = door()
    relay = start([back.address], pool=V2 + "\nsend_proxy_tlvs = []")
    call(relay)
    header, _ = receive(back)
    assert len(header.raw) == 28


def test_the_header_inside_tls_comes_first(start, door, pair):
    back = door()
    relay = start([back.address], pool=INSIDE)
    client, server = pair(relay, back)
    header, rest = read_inside(server)
    assert rest == b""
    assert header.source == client.sock.getsockname()
    assert header.ssl["cn"] == b"alice"
    server.send(b"hello")  # a server that speaks first
    assert client.receive(5) == b"hello"
    relayed(client, server)
    client.close()
    server.close()
    assert relay.record(0)["bytes_in"] == 7, "without the header"


@pytest.mark.parametrize("pool", [V2, INSIDE])
def test_each_backend_that_is_tried_gets_it(start, door, call, pki, pool, receive):
    """A TLS 1.3 backend refuses late, after it got a header inside TLS."""
    refuses, back = door(client_ca=pki.foreign_ca), door()
    relay = start([refuses.address, back.address], pool=pool)
    client = call(relay)
    sock = refuses.accept_tcp()
    if pool == V2:
        receive_header(sock)
    with contextlib.suppress(ssl.SSLError, EOFError, OSError):
        Peer(sock, refuses.context, server_side=True)
    sock.close()
    if pool == V2:
        header, server = receive(back)
    else:
        server = back.accept()
        header, _ = read_inside(server)
    assert header.source == client.sock.getsockname()
    relayed(client, server)


KEYS = {
    "EC256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EC384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "RSA2048": lambda: rsa.generate_private_key(65537, 2048),
    "ED25519": ed25519.Ed25519PrivateKey.generate,
}
# By what s_client says: the type of the signature.
SCHEMES = {"ECDSA": "ecdsa_", "RSA-PSS": "rsa_pss_rsae_", "RSA": "rsa_pkcs1_", "ed25519": "ed25519"}


def gateway_files(pki, kind, directory):
    """A certificate of the gateway with this kind of key."""
    key, ca = KEYS[kind](), pki.authority
    like = pki.gateway.issued.certificate
    builder = x509.CertificateBuilder(
        issuer_name=ca.certificate.subject,
        subject_name=like.subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=like.not_valid_before_utc,
        not_valid_after=like.not_valid_after_utc,
    )
    names = like.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    signed = builder.add_extension(names.value, critical=False).sign(ca.key, hashes.SHA256())
    files = Files(directory / "other.pem", directory / "other.key", pki.gateway.issued)
    files.certificate.write_bytes(signed.public_bytes(Encoding.PEM))
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


@needs("openssl")
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize(
    ("kind", "offers"),
    [
        ("EC256", ["", "ECDSA+SHA512:ECDSA+SHA256"]),
        ("EC384", ["", "ECDSA+SHA384:ECDSA+SHA256"]),
        ("RSA2048", ["", "RSA-PSS+SHA512:RSA+SHA256:ECDSA+SHA256"]),
        ("RSA2048", ["RSA+SHA384:RSA-PSS+SHA384:ECDSA+SHA256"]),
        ("ED25519", [""]),
    ],
)
def test_the_scheme_of_our_signature_is_named(start, pki, stack, tmp_path, kind, offers, version):
    """The client says by which scheme the relay has signed."""
    back = HeaderBackend(pki.backend.certificate, pki.backend.key, pki.ca)
    stack.callback(back.close)
    gateway = gateway_files(pki, kind, tmp_path)
    relay = start([back.address], pool=V2, route="session_tickets = false", gateway=gateway)
    for offer in offers:
        options = [version, *(["-sigalgs", offer] if offer else [])]
        echoed, said = s_client(pki, relay.port, *options, files=pki.client)
        assert echoed, said
        header = back.headers[-1]
        scheme = header.ssl["sig_scheme"].decode()
        signature = re.search(r"Peer signature type: (\S+)", said)[1]
        assert scheme.startswith(SCHEMES[signature]), said
        if digest := re.search(r"Peer signing digest: (\S+)", said):
            assert scheme.endswith(digest[1].lower()), said
        assert header.ssl["key_alg"].decode() == kind


@pytest.mark.parametrize("pool", [V2, INSIDE])
def test_a_backend_that_accepts_late_gets_a_whole_header(start, stack, door, call, pool):
    """Its queue is full, so the connection is not there when the header is ready."""
    back = door()
    back.listener.listen(0)
    for _ in range(4):
        filler = stack.enter_context(socket.socket())
        filler.setblocking(False)
        filler.connect_ex(back.listener.getsockname())
    relay = start([back.address], pool=pool)
    client = call(relay)
    wait_until(lambda: relay.value("relay_backend_connections_active", "main", "b1"), "a connect")
    back.listener.listen(16)
    accepted, readable = [], []
    while not readable:  # the fillers send nothing
        readable, _ = ready.select([back.listener, *accepted], [], PATIENCE_S)
        assert readable, "nothing came"
        if back.listener in readable:
            accepted.append(back.accept_tcp())
            readable = []
    (sock,) = readable
    header = receive_header(sock) if pool == V2 else None
    server = Peer(sock, back.context, server_side=True)
    if pool == INSIDE:
        header, _ = read_inside(server)
    assert header.source == client.sock.getsockname()
    relayed(client, server)


def test_a_backend_that_expects_no_header_is_explained(start, backend, call):
    relay = start([backend().address], pool=V2)
    call(relay).end()
    record = relay.record()
    assert record["side"] == "outbound"
    assert ", sent a PROXY v2 header" in record["detail"]


@pytest.mark.parametrize("pool", ['send_proxy = "v1"', V2])
def test_the_clients_address_passes_through_two_relays(start, door, receive, pki, pool):
    """A balancer in front said who the client is; one LOCAL connection is its own."""
    back = door()
    relay = start([back.address], pool=pool, listener='accept_proxy = { from = ["127.0.0.1"] }')
    context = client_context(pki, pki.client)
    said = b"PROXY TCP6 2001:db8::1 2001:db8::2 1024 443\r\n"
    for before in (said, b"PROXY UNKNOWN\r\n"):
        sock = socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S)
        sock.sendall(before)
        client = Peer(sock, context, server_side=False, name="app.example.com")
        header, server = receive(back)
        known = before is said
        assert header.source == (("2001:db8::1", 1024) if known else sock.getsockname())
        assert header.destination == (("2001:db8::2", 443) if known else sock.getpeername())
        relayed(client, server)
        client.close()
        server.close()


@pytest.mark.parametrize("pool", ['send_proxy = "v1"', V2])
def test_a_passthrough_backend_gets_the_header_first(tmp_path, stack, door, pool):
    """It has the SNI of the hello, and nothing of TLS: the relay does not see that."""
    back = door()
    relay = RunningWorker(tmp_path, passthrough_toml([back.address], pool=pool))
    stack.callback(relay.close)
    first = hello()
    client = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))
    client.sendall(first)
    sock = back.accept_tcp()
    header = receive_header(sock)
    assert header.source == client.getsockname()
    assert header.destination == client.getpeername()
    assert set(header.tlvs) == ({"authority", "unique_id"} if pool == V2 else set())
    assert receive_exactly(sock, len(first)) == first


@pytest.mark.parametrize("pool", ['send_proxy = "v1"', V2])
def test_a_unix_backend_gets_the_header_first(tmp_path, stack, pki, call, pool):
    back = UnixDoor(tmp_path / "app.sock")
    stack.callback(back.close)
    relay = RunningWorker(tmp_path, unix_toml(pki, [back.path], pool=pool))
    stack.callback(relay.close)
    client = call(relay)
    sock = back.accept()
    header = receive_header(sock)
    assert header.source == client.sock.getsockname()
    if pool == V2:
        assert header.ssl["cn"] == b"alice"
    client.send(b"request")
    assert receive_exactly(sock, 7) == b"request"
