"""curl and openssl s_client are served by relay as by any mutual-TLS server."""

from __future__ import annotations

import re

import pytest

from tests.support.backend import TlsBackend
from tests.support.gateway import Gateway
from tests.support.programs import curl, needs, run, s_client
from tests.support.protocols import http
from tests.support.tables import listener_table, pool_table, route_table


@pytest.fixture(scope="module")
def web(pki):
    """A relay in front of an HTTP backend."""
    backend = TlsBackend(pki.backend.certificate, pki.backend.key, pki.ca, http("web"))
    body = listener_table(
        route_table(pki, sni=["app.example.com"], min_version="TLSv1.2")
    ) + pool_table(pki, [backend.address])
    with Gateway(body) as gateway:
        yield gateway
    backend.close()


@pytest.fixture(scope="module")
def echoing(pki):
    """Two workers in front of an echo server. The only SNI is app.example.com."""
    backend = TlsBackend(pki.backend.certificate, pki.backend.key, pki.ca)
    body = listener_table(route_table(pki, sni=["app.example.com"])) + pool_table(
        pki, [backend.address]
    )
    with Gateway(body) as gateway:
        yield gateway
    backend.close()


@needs("curl")
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_curl_makes_two_requests_on_one_connection(web, pki, version):
    done = curl(
        pki,
        web.port(),
        "/one",
        "/two",
        options=("--tls-max", version, "--write-out", "%{num_connects} connects\n"),
    )
    assert done.stdout == "web /one request 1\n1 connects\nweb /two request 2\n0 connects\n", (
        done.stderr
    )


@needs("curl")
def test_curl_without_a_certificate_says_that_one_is_required(web, pki):
    port = web.port()
    done = run(
        "curl",
        "-sS",
        "--noproxy",
        "*",
        "--resolve",
        f"app.example.com:{port}:127.0.0.1",
        "--cacert",
        str(pki.ca),
        f"https://app.example.com:{port}/",
    )
    assert done.returncode in {35, 56}
    assert "certificate required" in done.stderr or "alert" in done.stderr


@needs("curl")
def test_curl_with_plain_http_gets_a_400_that_says_use_https(web):
    done = run(
        "curl",
        "-sS",
        "--noproxy",
        "*",
        "--write-out",
        "%{http_code}",
        f"http://127.0.0.1:{web.port()}/",
    )
    assert done.stdout.endswith("400"), done
    assert "use https" in done.stdout
    (line,) = web.wait_for_access(reason="plain_http")
    assert line["remedy"]


@needs("openssl")
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_s_client_is_relayed_and_verifies_the_chain_it_gets(echoing, pki, version):
    echoed, printed = s_client(
        pki, echoing.port(), version, files=pki.client, said=f"hello {version}"
    )
    assert echoed, printed
    assert "Verify return code: 0 (ok)" in printed


@needs("openssl")
@pytest.mark.parametrize(
    ("client", "name", "expected"),
    [
        ("none -tls1_3", "app.example.com", ("no_certificate", "alert certificate required")),
        ("none -tls1_2", "app.example.com", ("no_certificate", "alert handshake failure")),
        ("wrong_ca", "app.example.com", ("unknown_ca", "alert unknown ca")),
        ("self_signed", "app.example.com", ("unknown_ca", "alert unknown ca")),
        ("expired", "app.example.com", ("expired", "alert certificate expired")),
        ("wrong_purpose", "app.example.com", ("wrong_purpose", "alert unsupported certificate")),
        (
            "good -tls1_1 -cipher DEFAULT@SECLEVEL=0",
            "app.example.com",
            ("protocol_version", "alert protocol version"),
        ),
        (
            "good -tls1_2 -cipher AES128-SHA",
            "app.example.com",
            ("no_shared_cipher", "alert handshake failure"),
        ),
        ("good", "stranger.example.net", ("unknown_sni", "unrecognized name")),
        ("good", "", ("no_sni", "unrecognized name")),
    ],
    ids=[
        "no certificate 1.3",
        "no certificate 1.2",
        "foreign CA",
        "self-signed",
        "expired",
        "wrong purpose",
        "TLS 1.1",
        "old cipher",
        "unknown name",
        "no name",
    ],
)
def test_s_client_is_refused_by_an_alert_and_the_log_says_why(echoing, pki, client, name, expected):
    who, *options = client.split()
    reason, alert = expected
    before = sum(line["reason"] == reason for line in echoing.access())
    echoed, printed = s_client(
        pki, echoing.port(), *options, files=pki.client_matrix()[who], name=name
    )
    assert not echoed, printed
    line = echoing.wait_for_access(before + 1, reason=reason)[-1]
    assert line["side"] == "inbound"
    assert line["remedy"]
    assert line["sni"] == name
    assert re.search(alert, printed), printed


@needs("openssl")
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_s_client_resumes_its_session_on_either_worker(echoing, pki, tmp_path, version):
    session = str(tmp_path / "session.pem")
    echoed, printed = s_client(
        pki,
        echoing.port(),
        version,
        "-sess_out",
        session,
        files=pki.client,
        said=f"first {version}",
    )
    assert echoed, printed
    assert "New, " in printed
    workers = set()
    # The kernel chooses the worker of each connection.
    for number in range(1, 31):
        echoed, printed = s_client(
            pki,
            echoing.port(),
            version,
            "-sess_in",
            session,
            files=pki.client,
            said=f"again {version}",
        )
        assert echoed, printed
        assert "Reused, " in printed
        lines = echoing.wait_for_access(
            number, resumed=True, tls_version=version.replace("-tls1_", "TLSv1.")
        )
        assert "CN=alice" in lines[-1]["subject"]
        workers = {line["session"].split("-")[0] for line in lines}
        if len(workers) == 2:
            break
    assert len(workers) == 2
