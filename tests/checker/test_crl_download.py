"""A download ends within its limits, whatever the server does."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time

import pytest

from relay.checker.crl_download import FetchError, Validators, download
from relay.shared import catalogue
from tests.support.crl_server import CrlServer
from tests.support.gateway import wait_until
from tests.support.ports import held_port
from tests.support.programs import needs, program

LIST = b"the bytes of a list" * 100
SHORT_S = 0.5


@pytest.fixture
def server():
    with CrlServer() as server:
        yield server


def failure(url, **keywords):
    """The result and the words of a download that fails."""
    with pytest.raises(FetchError) as caught:
        download(url, **keywords)
    assert caught.value.result in catalogue.CRL_FETCH_RESULTS
    return caught.value.result, str(caught.value)


def test_a_document_comes_with_its_validators_and_its_age(server):
    url = server.put(
        LIST,
        etag='"7"',
        last_modified="Fri, 27 Nov 2026 12:00:00 GMT",
        headers={"Cache-Control": "public, max-age=3600", "Age": "600"},
    )
    found = download(url)
    assert found.body == LIST
    assert found.validators == Validators('"7"', "Fri, 27 Nov 2026 12:00:00 GMT")
    assert found.max_age_s == 3000
    [(path, headers)] = server.requests
    assert path == "/ca.crl"
    assert headers["accept-encoding"] == "identity"
    assert "if-none-match" not in headers


def test_without_a_length_the_end_of_the_connection_is_the_end(server):
    found = download(server.put(LIST, declared=""))
    assert (found.body, found.validators, found.max_age_s) == (LIST, Validators(), None)


def test_a_chunked_document_is_put_together(server):
    chunks = b"5\r\n" + LIST[:5] + b"\r\n3\r\n" + LIST[5:8] + b"\r\n0\r\n\r\n"
    url = server.put(chunks, headers={"Transfer-Encoding": "chunked"})
    assert download(url).body == LIST[:8]


def test_the_query_is_sent_and_the_path_may_be_missing(server):
    server.put(LIST, path="/crl?ca=1&shard=2")
    assert download(server.url("/crl?ca=1&shard=2")).body == LIST
    server.put(LIST, path="/")
    assert download(server.url("")).body == LIST


@pytest.mark.parametrize(
    "validators", [{"etag": 'W/"7"'}, {"last_modified": "Fri, 27 Nov 2026 12:00:00 GMT"}]
)
def test_an_unchanged_document_is_not_sent_again(server, validators):
    url = server.put(LIST, **validators, headers={"Cache-Control": "max-age=60"})
    first = download(url)
    second = download(url, known=first.validators)
    assert second.body is None
    assert second.validators == first.validators
    assert second.max_age_s == 60
    assert server.answers == [200, 304]


def test_a_304_that_was_not_asked_for_is_a_failure(server):
    assert failure(server.put(b"", status=304)) == ("http_failed", "the server answered 304")


def test_validators_with_control_characters_are_not_kept(server):
    url = server.put(LIST, etag='"a\x7fb"', last_modified="x" * 5000)
    assert download(url).validators == Validators()


def test_a_redirect_to_the_same_host_is_followed(server):
    server.put(LIST, path="/moved/ca.crl")
    url = server.put(status=302, headers={"Location": "/moved/ca.crl"})
    assert download(url).body == LIST


def test_a_redirect_to_a_listed_host_is_followed(server):
    server.put(LIST, path="/moved.crl")
    location = server.url("/moved.crl", host="localhost")
    url = server.put(status=301, headers={"Location": location})
    result, why = failure(url)
    assert result == "redirect_refused"
    assert why == f'it redirects to "{location}", another host that is not in crl.hosts'
    assert download(url, {"localhost"}).body == LIST


def test_a_redirect_loop_ends(server):
    url = server.put(status=307, headers={"Location": "/ca.crl"})
    assert failure(url) == ("redirect_refused", "it redirects more than 3 times")
    assert server.count() == 4


@pytest.mark.parametrize(
    "location",
    [
        "",
        "https://127.0.0.1/ca.crl",
        "file:///etc/passwd",
        "//127.0.0.1:99999/",
        "http://user@127.0.0.1/",
        "http://127.0.0.1\x7f/",
        "ldap://127.0.0.1/",
        "http://[::1/",
    ],
)
def test_a_redirect_to_nowhere_is_refused(server, location):
    url = server.put(status=302, headers={"Location": location})
    result, why = failure(url, hosts={"127.0.0.1"})
    assert result == ("redirect_refused")
    assert why.isprintable()


@pytest.mark.parametrize("status", [201, 204, 206, 400, 403, 404, 500, 503])
def test_any_other_status_is_a_failure(server, status):
    assert failure(server.put(b"", status=status)) == (
        "http_failed",
        f"the server answered {status}",
    )


def test_a_compressed_answer_is_a_failure(server):
    url = server.put(LIST, headers={"Content-Encoding": "gzip"})
    result, why = failure(url)
    assert (result, "compressed (gzip)" in why) == ("http_failed", True)


def test_a_server_that_trickles_takes_no_longer_than_the_limit(server):
    for portion_s in (0.01, 0.2):
        url = server.put(LIST, portion_s=portion_s)
        began_at = time.monotonic()
        assert failure(url, total_s=SHORT_S)[0] == "timeout"
        assert time.monotonic() - began_at < SHORT_S + 1


def test_a_server_that_hangs_takes_no_longer_than_the_limit(server):
    assert failure(server.put(hang=True), total_s=SHORT_S) == (
        "timeout",
        "there was no whole answer within 0.5 s",
    )


def test_a_port_that_accepts_nothing_takes_no_longer_than_the_limit():
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        url = f"http://127.0.0.1:{full.getsockname()[1]}/"
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        assert failure(url, total_s=SHORT_S)[0] == "timeout"
        for filler in fillers:
            filler.close()


def test_a_truncated_document_is_a_failure(server):
    result, why = failure(server.put(LIST, declared=str(len(LIST) + 1)))
    assert (result, why) == (
        "truncated",
        f"the connection ended after {len(LIST)} bytes of the list",
    )
    url = server.put(b"5\r\nabcde\r\n", headers={"Transfer-Encoding": "chunked"})
    assert failure(url)[0] == "truncated"


def test_a_document_that_is_declared_too_large_is_not_read(server):
    url = server.put(b"", declared="1001", hang=False)
    result, why = failure(url, most_bytes=1000)
    assert (result, why) == ("too_large", "the list has 1001 bytes, more than the 1000 allowed")


@pytest.mark.parametrize("declared", ["", "-5", "nonsense"])
def test_a_document_without_an_end_stops_at_the_limit(server, declared):
    url = server.put(b"x", declared=declared, endless=True)
    result, why = failure(url, most_bytes=1 << 20)
    assert (result, why) == ("too_large", f"the list has more than {1 << 20} bytes")


def test_large_documents_wait_for_each_other_and_all_arrive(server):
    body = bytes(5 << 20)
    url = server.put(body)
    found = []
    threads = [threading.Thread(target=lambda: found.append(download(url).body)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [body] * 5


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1",
        b"<html>",
        b"HTTP/1.1 9999999999999 x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        bytes(range(256)),
    ],
)
def test_what_is_not_http_is_a_failure_in_printable_words(server, raw):
    result, why = failure(server.put(raw=raw))
    assert result in {"http_failed", "truncated"}
    assert why.isprintable()
    assert why


def test_a_refused_connection_is_a_failure(server):
    url = server.put(LIST)
    server.stop()
    assert failure(url) == ("connect_failed", "Connection refused")


def test_a_name_that_does_not_resolve_is_a_failure():
    result, why = failure("http://no-such-host.invalid/ca.crl")
    assert result == "connect_failed"
    assert why.startswith('the name "no-such-host.invalid" cannot be looked up: ')


def test_the_second_address_is_used_if_the_first_refuses(server, monkeypatch):
    url = server.put(LIST)
    found = socket.getaddrinfo("127.0.0.1", server.port, type=socket.SOCK_STREAM)
    closed = [(*found[0][:4], ("127.0.0.1", 1))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: closed + found)
    assert download(url).body == LIST


NGINX = """
daemon off; pid {0}/pid; error_log {0}/error.log; worker_processes 1; events {{}}
http {{
  access_log off; gzip on; gzip_types *; gzip_min_length 1;
  client_body_temp_path {0}; proxy_temp_path {0}; fastcgi_temp_path {0};
  uwsgi_temp_path {0}; scgi_temp_path {0};
  server {{
    listen 127.0.0.1:{1}; root {0}/www;
    location /moved {{ return 302 /ca.crl; }}
    location /hour {{ expires 1h; alias {0}/www/ca.crl; }}
  }}
}}
"""


@needs("nginx")
def test_nginx_answers_and_confirms_by_etag(tmp_path):
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "ca.crl").write_bytes(LIST)
    for path in (tmp_path, tmp_path / "www"):
        path.chmod(0o755)
    with held_port() as port:
        (tmp_path / "nginx.conf").write_text(
            ("user root;" if os.geteuid() == 0 else "") + NGINX.format(tmp_path, port)
        )
        server = subprocess.Popen(
            [
                program("nginx"),
                "-e",
                str(tmp_path / "error.log"),
                "-c",
                str(tmp_path / "nginx.conf"),
            ]
        )
        try:
            base = f"http://127.0.0.1:{port}"
            wait_until("nginx serves", lambda: accepts(port))
            found = download(f"{base}/ca.crl")
            assert found.body == LIST
            assert found.validators.etag
            assert found.validators.last_modified
            assert download(f"{base}/ca.crl", known=found.validators).body is None
            assert download(f"{base}/moved").body == LIST
            assert download(f"{base}/hour").max_age_s == 3600
            assert failure(f"{base}/none") == ("http_failed", "the server answered 404")
        finally:
            server.terminate()
            server.wait(20)


def accepts(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
