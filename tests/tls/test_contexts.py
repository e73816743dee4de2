"""TLS contexts in real handshakes: certificates, names, versions, ciphers, ALPN."""

import socket
import ssl
import subprocess
import types
from pathlib import Path

import pytest

import relay
from relay.demo.ca import Authority, LeafSpec
from relay.errors import ConfigError, Reason, Side, StartupError
from relay.tls import raw, stream
from relay.tls.explain import Failure
from relay.tls.raw import lib
from tests.support.handshakes import (
    NAME,
    PATIENCE_S,
    TLS12,
    TLS13,
    VERSIONS,
    accept_on,
    client_context,
    generation_of,
    meet_backend,
    meet_client,
    route_of,
    server_context,
    target_of,
    wait_readable,
)
from tests.support.programs import output_of, program

# For each client certificate: the reason, the subject that is logged, the alert that
# the client reads.
CLIENTS = {
    "good": ("done", "CN=alice", ""),
    "none": ("no_certificate", None, "SSLV3_ALERT_HANDSHAKE_FAILURE"),
    "expired": ("expired", "CN=alice", "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
    "not_yet_valid": ("not_yet_valid", "CN=alice", "SSLV3_ALERT_BAD_CERTIFICATE"),
    "wrong_ca": ("unknown_ca", "CN=mallory", "TLSV1_ALERT_UNKNOWN_CA"),
    "wrong_purpose": ("wrong_purpose", "CN=alice", "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"),
    "intermediate_missing": ("unknown_ca", "CN=ingrid", "TLSV1_ALERT_UNKNOWN_CA"),
    "intermediate_sent": ("done", "CN=ingrid", ""),
    "self_signed": ("unknown_ca", "CN=selma", "TLSV1_ALERT_UNKNOWN_CA"),
}
BACKENDS = {
    "good": ("done", ""),
    "wrong_name": ("backend_wrong_name", "SSLV3_ALERT_BAD_CERTIFICATE"),
    "expired": ("backend_expired", "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
    "not_yet_valid": ("backend_not_yet_valid", "SSLV3_ALERT_BAD_CERTIFICATE"),
    "wrong_ca": ("backend_unknown_ca", "TLSV1_ALERT_UNKNOWN_CA"),
    "wrong_purpose": ("backend_wrong_purpose", "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"),
    "self_signed": ("backend_unknown_ca", "TLSV1_ALERT_UNKNOWN_CA"),
}
both_versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


def serial_by_openssl(files):
    said = output_of("openssl", "x509", "-in", files.certificate, "-noout", "-serial")
    return said.strip().removeprefix("serial=")


@both_versions
@pytest.mark.parametrize("kind", CLIENTS)
def test_every_client_certificate_has_its_reason_name_and_alert(pki, kind, version):
    reason, subject, alert = CLIENTS[kind]
    files = pki.client_matrix()[kind]
    with meet_client(route_of(pki), client_context(pki, files, version)) as meeting:
        # TLS 1.3 has an alert for a missing certificate; TLS 1.2 has none.
        expected_alert = (
            "TLSV13_ALERT_CERTIFICATE_REQUIRED" if kind == "none" and version is TLS13 else alert
        )
        assert (meeting.reason, meeting.alert) == (reason, expected_alert)
        assert lib.ERR_peek_error() == 0
        if files is None:
            assert meeting.identity is None
        else:
            certificate = files.issued.certificate
            who = meeting.identity
            assert (who.subject, who.issuer, who.serial) == (
                subject,
                certificate.issuer.rfc4514_string(),
                serial_by_openssl(files),
            )
            assert (who.not_before_at, who.not_after_at) == (
                certificate.not_valid_before_utc.timestamp(),
                certificate.not_valid_after_utc.timestamp(),
            )
        if isinstance(meeting.result, Failure):
            assert meeting.result.detail
            assert "\n" not in meeting.result.detail


@both_versions
@pytest.mark.parametrize("kind", BACKENDS)
def test_every_backend_certificate_has_its_reason_and_alert(pki, kind, version):
    reason, alert = BACKENDS[kind]
    files = pki.backend_matrix()[kind]
    with meet_backend(target_of(pki), server_context(pki, files, version)) as meeting:
        assert (meeting.reason, meeting.alert) == (reason, alert)
        assert lib.ERR_peek_error() == 0
        assert (meeting.identity.subject, meeting.identity.serial) == (
            "CN=backend",
            serial_by_openssl(files),
        )


@both_versions
def test_the_bytes_of_both_sides_arrive_after_the_handshake(pki, version):
    with meet_client(route_of(pki), client_context(pki, pki.client, version)) as meeting:
        meeting.send(b"hello client")
        assert meeting.pending() == b"hello client"
        assert (
            stream.version(meeting.ssl) == meeting.peer.version() == version.name.replace("_", ".")
        )
        assert stream.server_name(meeting.ssl) == NAME
        name = meeting.peer.cipher()[0]
        assert stream.cipher(meeting.ssl) == name
        assert stream.group(meeting.ssl).lower() == "x25519"
        assert stream.alpn(meeting.ssl) == b""


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("127.0.0.1", "done"),
        ("::1", "done"),
        ("127.0.0.2", "backend_wrong_name"),
        ("localhost", "done"),
        ("BACKEND.example.COM", "done"),
        ("backend", "backend_wrong_name"),
    ],
)
def test_a_backend_is_verified_by_its_configured_name_not_its_cn(pki, name, reason):
    with meet_backend(target_of(pki, name), server_context(pki, pki.backend)) as meeting:
        assert meeting.reason == reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.example.com", "done"),
        ("a.b.example.com", "backend_wrong_name"),
        ("example.com", "backend_wrong_name"),
    ],
)
def test_a_wildcard_in_a_backends_certificate_is_one_label(pki, name, reason):
    with meet_backend(target_of(pki, name), server_context(pki, pki.gateway)) as meeting:
        assert meeting.reason == reason


def test_a_wildcard_in_the_middle_of_a_label_matches_nothing(pki):
    files = pki.write(
        pki.authority.issue(LeafSpec("backend", dns=("back*.example.com",), purposes=("server",)))
    )
    with meet_backend(target_of(pki), server_context(pki, files)) as meeting:
        assert meeting.result == Failure(Reason.BACKEND_WRONG_NAME, "hostname mismatch")


@both_versions
def test_the_backend_gets_its_name_as_sni_but_never_an_address(pki, version):
    seen = []
    context = server_context(pki, pki.backend, version)
    context.sni_callback = lambda _peer, name, _context: seen.append(name)
    for name in ("backend.example.com", "127.0.0.1"):
        with meet_backend(target_of(pki, name), context) as meeting:
            assert meeting.reason == "done"
    assert seen == ["backend.example.com", None]


@both_versions
def test_a_backend_that_rejects_our_certificate_is_recognized(pki, version):
    with meet_backend(
        target_of(pki), server_context(pki, pki.backend, version, ca=pki.foreign_ca)
    ) as meeting:
        if version is TLS13:  # its alert comes only after the relay's handshake is done
            assert meeting.reason == "done"
            assert lib.SSL_read(meeting.ssl, raw.ffi.new("char[10]"), 10) <= 0
            failure = stream.failure(Side.OUTBOUND)
        else:
            failure = meeting.result
        assert failure == Failure(
            Reason.BACKEND_REJECTED_OUR_CERTIFICATE, "the backend sent the alert unknown_ca"
        )
        assert lib.ERR_peek_error() == 0


@both_versions
def test_a_client_that_refuses_our_certificate_tells_us_why(pki, version):
    for context, name, reason in (
        (client_context(pki, pki.client, version, ca=pki.foreign_ca), NAME, "alert_unknown_ca"),
        (
            client_context(pki, pki.client, version),
            "elsewhere.example.net",
            "alert_bad_certificate",
        ),
    ):
        with meet_client(route_of(pki), context, name=name) as meeting:
            assert meeting.reason == reason
            assert (
                meeting.result.detail
                == f"the client sent the alert {reason.removeprefix('alert_')}"
            )


@both_versions
def test_the_configured_intermediates_are_sent_and_a_root_is_not(pki, version, tmp_path):
    root = Authority.root("Root of the chain")
    issued = (
        root.intermediate("One")
        .intermediate("Two")
        .issue(LeafSpec("gateway", dns=(NAME,), purposes=("server", "client")))
    )
    chain, key, ca = (
        tmp_path / "chain.pem",
        tmp_path / "chain.key",
        root.write(tmp_path / "root.pem"),
    )
    issued.write(chain, key)
    with chain.open("ab") as stream_:
        stream_.write(ca.read_bytes())

    # The peers know only the root, so they need the chain to verify the relay. The
    # program prints how many certificates it received.
    context = client_context(pki, pki.client, version, ca=ca)
    route = route_of(pki, certificate=chain, private_key=key)
    with meet_client(route, context) as meeting:
        assert meeting.reason == "done"
    with meet_backend(
        target_of(pki, machine_certificate=chain, machine_key=key),
        server_context(pki, pki.backend, version, ca=ca),
    ) as meeting:
        assert meeting.reason == "done"
        assert meeting.peer.getpeercert()["subject"] == ((("commonName", "gateway"),),)
    with a_client_program(
        pki, route, "-showcerts", "-tls1_2" if version is TLS12 else "-tls1_3"
    ) as (ours, sock, program):
        finish(ours, sock)
        lib.SSL_shutdown(ours)
        sock.shutdown(socket.SHUT_WR)
        said, _ = program.communicate(timeout=PATIENCE_S)
        assert said.count(b"-----BEGIN CERTIFICATE-----") == 3
        assert b"2 s:CN = One" in said


class a_client_program:  # noqa: N801 (reads as a function)
    """`openssl s_client`, connected to a connection of the relay."""

    def __init__(self, pki, route, *arguments):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(PATIENCE_S)
            command = [
                program("openssl"),
                "s_client",
                "-connect",
                f"127.0.0.1:{listener.getsockname()[1]}",
                "-servername",
                NAME,
                "-cert",
                pki.client.certificate,
                "-key",
                pki.client.key,
                *arguments,
            ]
            self.program = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            self.sock, _ = listener.accept()
        self.sock.setblocking(False)
        self.ssl = accept_on(route, self.sock)

    def __enter__(self):
        return self.ssl, self.sock, self.program

    def __exit__(self, *_):
        stream.free(self.ssl, established=True)
        self.sock.close()
        self.program.kill()
        self.program.communicate(timeout=PATIENCE_S)


def finish(ours, sock):
    for _ in range(100):
        result = stream.handshake(ours, Side.INBOUND)
        if result is stream.DONE:
            return
        assert result is stream.STEP_WANT_READ, result
        wait_readable(sock)
    raise AssertionError("the handshake does not end")


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_client_with_short_records_gets_all_of_a_long_write(pki, version):
    with a_client_program(pki, route_of(pki), "-maxfraglen", "512", "-quiet", version) as (
        ours,
        sock,
        program,
    ):
        finish(ours, sock)
        assert lib.SSL_write(ours, b"x" * 16_384, 16_384) == 16_384
        lib.SSL_shutdown(ours)
        sock.shutdown(socket.SHUT_WR)
        said, _ = program.communicate(timeout=PATIENCE_S)
        assert said == b"x" * 16_384


@both_versions
def test_alpn_is_our_first_choice_among_what_the_client_offers(pki, version):
    route = route_of(pki, alpn=("h2", "http/1.1", "postgresql"))
    for offer, chosen in (
        (["http/1.1", "h2"], "h2"),
        (["x", "postgresql", "http/1.1"], "http/1.1"),
        (["postgresql"], "postgresql"),
    ):
        context = client_context(pki, pki.client, version)
        context.set_alpn_protocols(offer)
        with meet_client(route, context) as meeting:
            assert (
                meeting.reason,
                meeting.peer.selected_alpn_protocol(),
                stream.alpn(meeting.ssl),
            ) == ("done", chosen, chosen.encode())


@both_versions
def test_a_client_without_a_shared_protocol_is_refused_with_an_alert(pki, version):
    route = route_of(pki, alpn=("h2",))
    context = client_context(pki, pki.client, version)
    with meet_client(route, context) as meeting:
        assert (meeting.reason, stream.alpn(meeting.ssl)) == ("done", b"")
    context.set_alpn_protocols(["h", "h22", "http/1.1"])
    with meet_client(route, context) as meeting:
        assert meeting.reason == "no_shared_alpn"
        assert "no application protocol" in str(meeting.peer_error)


@both_versions
def test_a_route_without_alpn_selects_nothing(pki, version):
    context = client_context(pki, pki.client, version)
    context.set_alpn_protocols(["h2"])
    with meet_client(route_of(pki), context) as meeting:
        assert (meeting.reason, meeting.peer.selected_alpn_protocol()) == ("done", None)


@both_versions
def test_the_backend_is_offered_only_the_given_protocol(pki, version):
    context = server_context(pki, pki.backend, version)
    context.set_alpn_protocols(["http/1.1", "h2"])
    with meet_backend(target_of(pki), context, alpn=b"h2") as meeting:
        assert (meeting.peer.selected_alpn_protocol(), stream.alpn(meeting.ssl)) == ("h2", b"h2")
    with meet_backend(target_of(pki), context) as meeting:
        assert meeting.peer.selected_alpn_protocol() is None


def old_client(pki):
    context = client_context(pki, pki.client, ssl.TLSVersion.TLSv1_1)
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def test_a_client_below_the_minimum_version_is_refused_with_an_alert(pki):
    for route, context in (
        (route_of(pki), old_client(pki)),
        (route_of(pki, min_version="TLSv1.3"), client_context(pki, pki.client, TLS12)),
    ):
        with meet_client(route, context) as meeting:
            assert (meeting.result, meeting.alert) == (
                Failure(Reason.PROTOCOL_VERSION, "unsupported protocol"),
                "TLSV1_ALERT_PROTOCOL_VERSION",
            )


def test_a_backend_below_the_minimum_version_is_refused(pki):
    with meet_backend(
        target_of(pki, min_version="TLSv1.3"), server_context(pki, pki.backend, TLS12)
    ) as meeting:
        assert meeting.result == Failure(
            Reason.BACKEND_PROTOCOL_VERSION, "the backend sent the alert protocol_version"
        )


def test_without_a_shared_cipher_neither_side_connects(pki):
    context = client_context(pki, pki.client, TLS12)
    context.set_ciphers("AES256-GCM-SHA384")
    cases = [
        (route_of(pki), context),
        (
            route_of(pki, ciphersuites_tls13="TLS_AES_128_CCM_SHA256"),
            client_context(pki, pki.client, TLS13),
        ),
    ]
    for route, client in cases:
        with meet_client(route, client) as meeting:
            assert (meeting.result, meeting.alert) == (
                Failure(Reason.NO_SHARED_CIPHER, "no shared cipher"),
                "SSLV3_ALERT_HANDSHAKE_FAILURE",
            )
    backend = server_context(pki, pki.backend, TLS12)
    backend.set_ciphers("AES256-GCM-SHA384")
    for target, server in (
        (target_of(pki), backend),
        (
            target_of(pki, ciphersuites_tls13="TLS_AES_128_CCM_SHA256"),
            server_context(pki, pki.backend, TLS13),
        ),
    ):
        with meet_backend(target, server) as meeting:
            assert meeting.result == Failure(
                Reason.BACKEND_NO_SHARED_CIPHER, "the backend sent the alert handshake_failure"
            )


def test_the_servers_order_of_ciphers_wins(pki):
    context = client_context(pki, pki.client, TLS12)
    context.set_ciphers("ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES128-GCM-SHA256")
    with meet_client(route_of(pki), context) as meeting:
        assert meeting.peer.cipher()[0] == "ECDHE-ECDSA-AES128-GCM-SHA256"


def test_groups_are_the_configured_ones(pki):
    context = client_context(pki, pki.client, TLS13)
    with meet_client(route_of(pki, groups="P-384"), context) as meeting:
        assert (meeting.reason, stream.group(meeting.ssl)) == ("done", "secp384r1")
    context.set_ecdh_curve("secp521r1")
    with meet_client(route_of(pki, groups="X25519:P-256"), context) as meeting:
        assert (meeting.reason, meeting.alert) == (
            "no_shared_group",
            "SSLV3_ALERT_HANDSHAKE_FAILURE",
        )
    with meet_client(route_of(pki, groups="X25519MLKEM768:P-521"), context) as meeting:
        assert (meeting.reason, stream.group(meeting.ssl)) == ("done", "secp521r1")


def test_no_list_enables_ciphers_without_authentication(pki):
    anonymous = "ADH-AES128-GCM-SHA256:AECDH-AES128-SHA"
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.maximum_version = TLS12
    server.set_ciphers(f"{anonymous}:@SECLEVEL=0")
    with meet_backend(target_of(pki, ciphers_tls12="ALL"), server) as meeting:
        assert meeting.result == Failure(
            Reason.BACKEND_NO_SHARED_CIPHER, "the backend sent the alert handshake_failure"
        )
    client = client_context(pki, None, TLS12)
    client.set_ciphers(f"{anonymous}:@SECLEVEL=0")
    with meet_client(route_of(pki, ciphers_tls12="ALL"), client) as meeting:
        assert meeting.reason == "no_shared_cipher"
    with pytest.raises(ConfigError, match=r"no cipher with authentication and encryption in 'ADH"):
        target_of(pki, ciphers_tls12=anonymous)


@pytest.mark.parametrize("kind", ["rsa-2048", "ec-p256"])
def test_rsa_and_ec_keys_serve_both_versions(pki, kind):
    files = pki.write(
        pki.authority.issue(LeafSpec("gateway", dns=(NAME,), purposes=("server",), key_type=kind))
    )
    for version in VERSIONS.values():
        with meet_client(
            route_of(pki, certificate=files.certificate, private_key=files.key),
            client_context(pki, pki.client, version),
        ) as meeting:
            assert meeting.reason == "done"


def test_every_setting_that_openssl_refuses_is_reported_at_once(pki, tmp_path):
    routes = (
        {"ciphers_tls12": "NO-SUCH"},
        {"groups": "NO-SUCH"},
        {"certificate": tmp_path / "no.pem"},
        {"client_ca": pki.gateway.key},
    )
    with pytest.raises(ConfigError) as caught:
        generation_of(
            pki,
            routes=routes,
            backends=({"address": "no-such-host.invalid:1"}, {"address": "127.0.0.1:2"}),
            ciphersuites_tls13="NO-SUCH",
            groups="NEITHER",
        )
    places = [problem.where for problem in caught.value.problems]
    start = "listener.https.route"
    assert places == [
        f"{start}[0].ciphers_tls12",
        f"{start}[1].groups",
        f"{start}[2].certificate",
        f"{start}[3].client_ca",
        "pool.main.ciphersuites_tls13",
        "pool.main.groups",
    ]
    assert all(problem.remedy and "\n" not in str(problem) for problem in caught.value.problems)
    assert lib.ERR_peek_error() == 0


def test_a_backend_whose_name_does_not_resolve_has_no_address(pki):
    """Contexts are built without a resolver: it could block the supervisor."""
    generation = generation_of(pki, backends=({}, {"address": "no-such-host.invalid:1"}))
    first, second = generation.targets["main"]
    assert first.sockaddr
    assert (second.family, second.sockaddr) == (0, ())
    assert second.context


def test_missing_bindings_are_named_with_what_to_do():
    bindings = types.SimpleNamespace(
        **{
            name: getattr(lib, name)
            for name in raw._NEEDED
            if name not in {"SSL_read", "SSL_CB_READ_ALERT"}
        }
    )
    with pytest.raises(
        StartupError, match=r"does not provide SSL_CB_READ_ALERT, SSL_read; install the versions"
    ):
        raw.check_bindings(bindings)


def test_every_binding_the_relay_uses_is_checked_at_import():
    used = set()
    for file in Path(relay.__file__).parent.rglob("*.py"):
        used |= {
            word.removeprefix("lib.")
            for line in file.read_text().splitlines()
            for word in _words(line)
            if word.startswith("lib.")
        }
    assert "SSL_do_handshake" in used
    assert used - set(raw._NEEDED) == set()
    assert set(raw._NEEDED) - used == set()


def _words(line):
    return "".join(char if char.isalnum() or char in "._" else " " for char in line).split()
