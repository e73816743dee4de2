"""What an operator finds in the access log, and how the file is rotated."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from datetime import UTC, datetime

from tests.support.client import context_of, talk
from tests.support.gateway import wait_until
from tests.support.peer import dial

FIELDS = {
    "time", "session", "listener", "route", "client", "sni", "alpn",
    "tls_version", "cipher", "group", "resumed", "subject", "issuer", "serial", "not_after",
    "pool", "backend", "why", "outbound_tls_version", "outbound_cipher",
    "bytes_in", "bytes_out", "duration_s", "inbound_handshake_s", "outbound_handshake_s",
    "reason", "side", "remedy",
}  # fmt: skip


def test_a_good_session_has_every_field_filled_with_what_happened(start, pki, simple):
    gateway = start(simple, relay={"workers": 1})
    before = datetime.now(UTC)
    peer = dial(gateway.port(), context_of(pki))
    peer.send(b"x" * 1234)
    assert peer.receive(1234) == b"x" * 1234
    client = peer.sock.getsockname()
    peer.close()
    (line,) = gateway.wait_for_access(1)
    assert set(line) >= FIELDS
    at = datetime.fromisoformat(line["time"])
    assert -0.01 < (at - before).total_seconds() < 20
    leaf = pki.client.issued.certificate
    assert {
        key: line[key]
        for key in FIELDS
        - {
            "time",
            "session",
            "duration_s",
            "inbound_handshake_s",
            "outbound_handshake_s",
            "outbound_cipher",
        }
    } == {
        "listener": "https",
        "route": "default",
        "client": f"127.0.0.1:{client[1]}",
        "sni": "app.example.com",
        "alpn": "",
        "tls_version": "TLSv1.3",
        "cipher": "TLS_AES_128_GCM_SHA256",
        "group": "x25519",
        "resumed": False,
        "subject": "CN=alice",
        "issuer": "CN=Test CA",
        "serial": line["serial"],
        "not_after": f"{leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
        "pool": "main",
        "backend": "w1",
        "why": "balanced",
        "outbound_tls_version": "TLSv1.3",
        "bytes_in": 1234,
        "bytes_out": 1234,
        "reason": "finished",
        "side": "",
        "remedy": "",
    }
    assert int(line["serial"], 16) == leaf.serial_number
    assert line["outbound_cipher"].startswith("TLS_")
    assert 0 < line["inbound_handshake_s"] < line["duration_s"] < 20
    assert 0 < line["outbound_handshake_s"] < line["duration_s"]


def test_failed_sessions_have_the_same_fields_and_a_remedy(start, pki, simple, echo):
    gateway = start(simple, relay={"workers": 1})
    foreign = context_of(pki, pki.client_foreign)
    with contextlib.suppress(OSError):
        talk(pki, gateway.port(), context=foreign)
    (refused,) = gateway.wait_for_access(1)
    assert set(refused) >= FIELDS
    assert (refused["reason"], refused["side"], refused["subject"], refused["issuer"]) == (
        "unknown_ca",
        "inbound",
        "CN=mallory",
        "CN=Foreign CA",
    )
    assert "client_ca" in refused["remedy"]
    assert (refused["backend"], refused["bytes_in"], refused["outbound_handshake_s"]) == (
        "",
        0,
        None,
    )
    echo.close()
    with contextlib.suppress(OSError):
        assert talk(pki, gateway.port()) == b""
    failed = gateway.wait_for_access(2)[1]
    assert set(failed) >= FIELDS
    assert (failed["reason"], failed["side"], failed["subject"]) == (
        "backend_refused",
        "outbound",
        "CN=alice",
    )
    assert f"127.0.0.1:{echo.port}" in failed["detail"]
    assert failed["remedy"]


def test_the_log_format_of_the_replaced_virtual_host_works(start, pki, simple):
    gateway = start(simple, log={"access_format": r'%t %h %{SSL_PROTOCOL}x %{SSL_CIPHER}x "%r" %b'})
    talk(pki, gateway.port(), b"12345")
    line = wait_until(
        "there is a line", lambda: gateway.access_file.exists() and gateway.access_file.read_text()
    )
    assert re.fullmatch(
        r"\[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] 127\.0\.0\.1 "
        r'TLSv1\.3 TLS_AES_128_GCM_SHA256 "TLS app\.example\.com" 5\n',
        line,
    ), line


def test_the_access_log_goes_to_a_new_file_by_name_every_period(start, pki, simple, short_path):
    gateway = start(
        simple, log={"access": str(short_path / "access_%H%M%S.log"), "access_rotate_s": 2}
    )

    def files():
        talk(pki, gateway.port())
        return sorted(short_path.glob("access_*.log"))

    two = wait_until("a second file is begun", lambda: len(files()) >= 2 and files())
    for file in two:
        assert re.fullmatch(r"access_\d{6}\.log", file.name)
        assert int(file.stem[-2:]) % 2 == 0
        assert all(json.loads(line)["reason"] for line in file.read_text().splitlines())


def test_after_a_rename_and_usr1_no_line_is_lost(start, pki, simple):
    gateway = start(simple)
    count = 0
    renamed = gateway.directory / "access.log.1"
    context = context_of(pki)

    def visit():
        nonlocal count
        talk(pki, gateway.port(), context=context)
        count += 1

    for _ in range(5):
        visit()
    gateway.wait_for_access(5)
    gateway.access_file.rename(renamed)
    visit()  # still to the old file, whose name has changed
    wait_until("the line came", lambda: len(renamed.read_text().splitlines()) == 6)
    gateway.signal(signal.SIGUSR1)

    def in_new_file():
        visit()
        return (
            gateway.access_file.exists()
            and len({line["session"].split("-")[0] for line in gateway.access()}) == 2
        )

    wait_until("both workers write to the new file", in_new_file)
    wait_until(
        "all lines are there",
        lambda: len(renamed.read_text().splitlines()) + len(gateway.access()) == count,
    )


def test_a_full_disk_of_the_log_does_not_stop_a_session(start, pki, simple):
    gateway = start(simple, log={"access": "/dev/full"}, relay={"workers": 1})
    for _ in range(3):
        assert talk(pki, gateway.port()) == b"hello"
    assert "cannot be written: No space left on device" in gateway.wait_for_log("the access log")
