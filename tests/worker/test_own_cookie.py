"""cookie_insert: the first response has the relay's cookie; nothing else is changed."""

import pytest

from relay.core.cookie import opaque_value
from tests.support.web import Site, plain, request, response
from tests.support.worker import RunningWorker, pool_toml, route_toml

SECRET = b"0123456789abcdef0123456789abcdef"


def line(name, attributes="; Path=/; Secure; HttpOnly; SameSite=Lax"):
    return f"Set-Cookie: RELAYID={opaque_value(SECRET, 'main', name)}{attributes}\r\n".encode()


@pytest.fixture
def run(tmp_path, pki, stack, backend):
    """A worker and some sites. The secret's file ends with a newline, as files do."""

    def run(answer=None, count=3, extra="", worker=None):
        sites = [Site(f"b{i}", answer) for i in range(1, count + 1)]
        addresses = [backend(site).address for site in sites]
        file = tmp_path / "cookie.secret"
        file.write_bytes(SECRET + b"\n")
        file.chmod(0o600)
        pool = (
            'sticky = "cookie"\nsticky_fallback = "balance"\ncookie = "RELAYID"\n'
            f'cookie_insert = true\ncookie_secret_file = "{file}"\n{extra}'
        )
        toml = (
            '[[listener]]\nname = "https"\nlisten = ["127.0.0.1:0"]\n'
            f"{route_toml(pki)}\n{pool_toml(pki, addresses, extra=pool)}"
        )
        running = RunningWorker(tmp_path, toml, beside=worker)
        stack.callback(running.close)
        return running

    return run


def test_only_the_first_response_carries_the_cookie(run, call):
    client = call(run())
    client.send(request("a=1"))
    head, body = response(client)
    name = body.decode()
    assert head == b"HTTP/1.1 200 OK\r\n" + line(name) + b"Content-Length: 2\r\n\r\n"
    client.send(request())
    assert response(client)[0] == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


@pytest.mark.parametrize("extra", ["", 'cookie_separator = "!"\n', 'cookie_separator = ""\n'])
def test_the_cookie_brings_the_client_back_and_is_not_set_again(run, call, extra):
    relay = run(extra=extra)
    client = call(relay)
    client.send(request())
    head, body = response(client)
    cookie = head.partition(b"Set-Cookie: ")[2].partition(b";")[0].decode()
    for _ in range(4):
        client = call(relay)
        client.send(request(f"a=1; {cookie}"))
        head, again = response(client)
        assert again == body
        assert b"Set-Cookie" not in head
        client.close()
    assert relay.record(0)["why"] == "cookie"


def test_a_cookie_that_is_not_ours_is_replaced(run, call):
    client = call(run())
    client.send(request("RELAYID=0123456789abcdef.b2"))
    head, body = response(client)
    assert line(body.decode()) in head


def test_the_attributes_are_those_configured(run, call):
    client = call(
        run(
            count=1,
            extra='cookie_path = "/app"\ncookie_secure = false\ncookie_http_only = false\n'
            'cookie_same_site = "Strict"',
        )
    )
    client.send(request())
    assert line("b1", "; Path=/app; SameSite=Strict") in response(client)[0]


def test_interim_responses_pass_as_they_are(run, call):
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    client = call(run(lambda name, head: interim + plain(name, head), count=1))
    client.send(request())
    expected = interim + b"HTTP/1.1 200 OK\r\n" + line("b1") + b"Content-Length: 2\r\n\r\nb1"
    assert client.receive(len(expected)) == expected


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=["no HTTP", "another protocol"],
)
def test_what_is_no_response_passes_as_it_is(run, call, answer):
    client = call(run(lambda *_: answer, count=1))
    client.send(request())
    assert client.receive(len(answer)) == answer


def test_a_request_that_is_not_http_gets_no_cookie(run, call):
    client = call(run(count=1))
    client.send(b"\x00\x01" + request())
    assert b"Set-Cookie" not in response(client)[0]


def test_a_large_response_arrives_whole_behind_the_cookie(run, call):
    body = bytes(range(256)) * 8192
    client = call(
        run(
            lambda *_: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body),
            count=1,
        )
    )
    client.send(request())
    head, received = response(client)
    assert line("b1") in head
    assert received == body


def test_a_head_in_pieces_gets_one_cookie(call, door, pki, tmp_path, stack):
    back = door()
    file = tmp_path / "cookie.secret"
    file.write_bytes(SECRET)
    file.chmod(0o600)
    pool = (
        'sticky = "cookie"\ncookie = "RELAYID"\ncookie_insert = true\n'
        f'cookie_secret_file = "{file}"'
    )
    relay = RunningWorker(
        tmp_path,
        '[[listener]]\nname = "https"\nlisten = ["127.0.0.1:0"]\n'
        f"{route_toml(pki)}\n{pool_toml(pki, [back.address], extra=pool)}",
    )
    stack.callback(relay.close)
    client = call(relay)
    client.send(request())
    server = back.accept()
    server.receive(len(request()))
    whole = b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n"
    for at in range(len(whole)):
        server.send(whole[at : at + 1])
    expected = whole.replace(b"\r\n", b"\r\n" + line("b1"), 1)
    assert client.receive(len(expected)) == expected
    server.send(whole)
    assert client.receive(len(whole)) == whole
