"""The balancer-manager page, its API and `relay backend`, against a real relay."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
import urllib.parse

import pytest

from relay.shared.password import hash_password
from tests.support.backend import TlsBackend
from tests.support.client import context_of
from tests.support.gateway import Gateway, wait_until
from tests.support.operator import Operator, login
from tests.support.tables import listener_table, pool_table, route_table


def connect(gateway, pki):
    """A session of a good client."""
    return context_of(pki).wrap_socket(
        socket.create_connection(gateway.address(), 20), server_hostname="app.example.com"
    )


@pytest.fixture(scope="module")
def addresses(pki):
    backends = [TlsBackend(pki.backend.certificate, pki.backend.key, pki.ca) for _ in range(2)]
    yield [backend.address for backend in backends]
    for backend in backends:
        backend.close()


@pytest.fixture(scope="module")
def body(pki, addresses):
    return listener_table(route_table(pki)) + pool_table(pki, addresses)


@pytest.fixture(scope="module")
def shared(body):
    with Gateway(body, admin={}) as gateway:
        yield gateway


@pytest.fixture
def operator(shared):
    """An operator of a relay that is shared by tests that undo their changes."""
    operator = Operator(shared.endpoints["admin"])
    yield operator
    for name in ("w1", "w2"):
        operator.change(f"main/{name}", {"mode": "none"})


@pytest.fixture
def start(body):
    with contextlib.ExitStack() as stack:
        yield lambda text=None, **sections: stack.enter_context(
            Gateway(body if text is None else text, **{"admin": {}, **sections})
        )


# What is shown.


def test_every_backend_is_shown_with_what_httpd_shows_and_more(shared, operator, pki):
    with connect(shared, pki) as session:
        session.sendall(b"hello")
        assert session.recv(5) == b"hello"
        wait_until(
            "the bytes are counted",
            lambda: sum(operator.backend(name)["from_bytes"] for name in ("w1", "w2")) >= 5,
        )
        found = operator.pools()
    (pool,) = found["pools"]
    assert (pool["name"], pool["balance"], pool["sticky"], pool["busy"]) == (
        "main",
        "round_robin",
        "none",
        1,
    )
    first, second = pool["backends"]
    assert (
        first["backend"],
        first["mode"],
        first["weight"],
        first["status"],
        first["overridden"],
    ) == ("w1", "enabled", 1, "ok", False)
    assert first["elected"] + second["elected"] >= 1
    assert sorted((first["load"], second["load"])) == [0.0, 1.0]
    assert first["health"]["state"] == "unknown"


def test_the_page_works_without_javascript_and_loads_nothing(operator):
    status, text, headers = operator.ask("/balancer-manager")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert 'data-key="main/w1"' in text
    assert 'data-key="main/w2"' in text
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'nonce-")
    assert "unsafe" not in policy
    assert "http://" not in text
    assert "https://" not in text.replace('removeprefix("https://")', "")
    assert headers["cache-control"] == "no-store"
    assert operator.ask("/balancer-manager")[2]["content-security-policy"] != policy


def test_what_the_checks_found_is_shown_and_a_file_of_nonsense_is_not(start):
    gateway = start()
    operator = Operator(gateway.endpoints["admin"])
    file = gateway.state_dir / "checker" / "health.json"
    for nonsense in (
        b"",
        b"[1]",
        b"\xff",
        b'{"main/w1": 5}',
        b'{"main/w1": {"reason": 5, "since": "now", "not_after": true}}',
        b"[" * 100_000,
    ):
        file.write_bytes(nonsense)
        assert operator.backend()["health"]["reason"] is None
    file.write_text(
        json.dumps(
            {
                "main/w1": {
                    "reason": "<b>refused</b>",
                    "tls_version": "TLSv1.3",
                    "not_after": 2_000_000_000,
                }
            }
        )
    )
    assert operator.backend()["health"] == {
        "state": "unknown",
        "since": None,
        "reason": "<b>refused</b>",
        "remedy": None,
        "last_check_at": None,
        "duration_s": None,
        "tls_version": "TLSv1.3",
        "not_after": 2_000_000_000,
    }
    page = operator.ask("/balancer-manager")[1]
    assert "&lt;b&gt;refused&lt;/b&gt;" in page
    assert "until 2033-05-18" in page


def test_a_backend_whose_checks_fail_is_shown_with_the_reason(start, pki, addresses):
    gateway = start(
        listener_table(route_table(pki))
        + pool_table(pki, [addresses[0], "127.0.0.1:1"], health={"interval_s": 0.2, "fall": 1})
    )
    operator = Operator(gateway.endpoints["admin"])
    wait_until(
        "the checks have found out",
        lambda: (
            operator.backend("w2")["status"] == "down"
            and operator.backend("w1")["health"]["state"] == "up"
        ),
    )
    up = wait_until(
        "what is up is written",
        lambda: (
            operator.backend("w1")["health"]["tls_version"] and operator.backend("w1")["health"]
        ),
    )
    down = wait_until(
        "why not is written",
        lambda: operator.backend("w2")["health"]["reason"] and operator.backend("w2")["health"],
    )
    assert up["tls_version"] == "TLSv1.3"
    assert up["not_after"] > time.time()
    assert "refused" in down["reason"]
    assert operator.pools()["pools"][0]["checked"] is True
    assert "refused" in operator.ask("/balancer-manager")[1]


# Changes.


def test_a_change_holds_at_once_and_is_logged_with_who_and_until_when(shared, operator):
    status, reply = operator.change("main/w1", {"mode": "drain", "duration_s": 600})
    assert (status, reply["ok"], reply["backend"]) == (200, True, "w1")
    assert reply["now"].startswith("drain until ")
    backend = operator.backend()
    assert (backend["mode"], backend["status"], backend["overridden"]) == ("drain", "drain", True)
    assert backend["override"]["mode"]["by"] == "127.0.0.1"
    assert 590 < backend["override"]["mode"]["until"] - time.time() <= 600
    (line,) = [
        json.loads(line)
        for line in shared.log().splitlines()
        if "main/w1 is changed by" in line and reply["now"] in line
    ]
    assert (line["by"], line["pool"], line["backend"], line["process"]) == (
        "127.0.0.1",
        "main",
        "w1",
        "supervisor",
    )


def test_workers_obey_a_change(shared, operator, pki):
    operator.change("main/w1", {"mode": "disabled"})
    before = operator.backend("w1")["elected"]
    for _ in range(8):
        with connect(shared, pki) as session:
            session.sendall(b"x")
            assert session.recv(1) == b"x"
    assert operator.backend("w1")["elected"] == before


def test_the_weight_is_changed_and_put_back(operator):
    assert operator.change("main/w2", {"weight": 9})[1]["now"] == "weight 9"
    assert (operator.backend("w2")["weight"], operator.backend("w2")["configured"]["weight"]) == (
        9,
        1,
    )
    assert operator.change("main/w2", {"weight": 0})[1]["now"] == "as configured"


def test_the_form_of_the_page_works_without_javascript(operator):
    token = operator.pools()["csrf"]
    form = urllib.parse.urlencode(
        {"csrf": token, "duration_s": "300", "weight": "1", "mode": "standby"}
    ).encode()
    status, _, headers = operator.ask(
        "/api/pools/main/w1", "POST", form, content_type="application/x-www-form-urlencoded"
    )
    assert (status, headers["location"]) == (303, "/balancer-manager")
    assert operator.backend()["mode"] == "standby"
    assert "ends in 5 min" in operator.ask("/balancer-manager")[1]


def test_what_curl_sends_without_being_told_the_type_is_json(operator):
    assert (
        operator.change(
            "main/w1", {"mode": "drain"}, content_type="application/x-www-form-urlencoded"
        )[1]["now"]
        == "drain"
    )


@pytest.mark.parametrize("form", [b"", b"mode=drain", b"csrf=1.0&weight=x", b"\xff", b"a=1&" * 50])
def test_a_form_of_somebody_else_changes_nothing(operator, form):
    status, text, _ = operator.ask(
        "/api/pools/main/w1", "POST", form, content_type="application/x-www-form-urlencoded"
    )
    assert status in {400, 403}
    assert json.loads(text)["ok"] is False
    assert operator.backend()["overridden"] is False


@pytest.mark.parametrize(
    ("member", "wanted", "why"),
    [
        ("main/w9", {"mode": "drain"}, "there is no backend main/w9"),
        ("nowhere/w1", {"mode": "drain"}, "there is no backend nowhere/w1"),
        ("main/w1", {"mode": "off"}, "mode must be one of"),
        ("main/w1", {"weight": 300}, "weight must be"),
        ("main/w1", {}, "the request changes nothing"),
        ("main/w1", b"[1]", "expected a JSON object"),
        ("main/w1", b"{", "expected a JSON object"),
        ("main/w1", {"mode": "drain", "duration_s": -1}, "duration_s must be"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(operator, member, wanted, why):
    status, reply = operator.change(member, wanted)
    assert (status, reply["ok"]) == (400, False)
    assert why in reply["error"]


def test_a_body_without_measure_is_refused(operator):
    assert operator.change("main/w1", b"x" * 10_000)[0] == 413


# Refused requests.


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"token": ""}, "no valid CSRF token"),
        ({"token": "1.0"}, "no valid CSRF token"),
        ({"token": "²." + "0" * 64}, "no valid CSRF token"),
        ({"origin": "http://evil.example"}, "comes from a page of 'http://evil.example'"),
        ({"origin": "null"}, "comes from a page of 'null'"),
        ({"sec_fetch_site": "cross-site"}, "from a page of another site"),
        ({"host": "evil.example"}, "the host name 'evil.example' is unknown here"),
    ],
)
def test_a_change_that_does_not_come_from_our_page_is_refused(operator, headers, why):
    headers = dict(headers)
    token = headers.pop("token", None)
    status, reply = operator.change(
        "main/w1",
        {"mode": "drain"},
        operator.pools()["csrf"] if token is None else token.encode().decode("latin-1"),
        **headers,
    )
    assert (status, reply["ok"]) == (403, False)
    assert why in reply["error"]
    assert operator.backend()["mode"] == "enabled"


def test_a_token_of_another_relay_is_refused(operator, start):
    other = Operator(start().endpoints["admin"])
    assert operator.change("main/w1", {"mode": "drain"}, other.pools()["csrf"])[0] == 403


@pytest.mark.parametrize("path", ["/balancer-manager", "/balancer-manager/pools", "/api/pools"])
def test_a_stranger_that_points_its_name_here_reads_nothing(operator, path):
    status, text, _ = operator.ask(path, host="rebound.example:80")
    assert status == 403
    assert "w1" not in text
    assert operator.ask(path, host="LOCALHOST:1234")[0] == 200


def test_configured_names_are_known(start):
    operator = Operator(
        start(admin={"hosts": ["Relay.example.com", "192.0.2.7"]}).endpoints["admin"]
    )
    for host in ("relay.example.com", "RELAY.example.com:8080", "192.0.2.7"):
        assert operator.ask("/balancer-manager", host=host)[0] == 200
    status, _ = operator.change(
        "main/w1", {"mode": "drain"}, host="relay.example.com", origin="https://relay.example.com"
    )
    assert status == 200


def test_without_a_login_a_public_address_is_read_only(start):
    address = start(admin={"listen": "0.0.0.0:0"}).endpoints["admin"]
    operator = Operator(address.replace("0.0.0.0", "127.0.0.1"))
    found = operator.pools()
    assert (found["writable"], found["csrf"]) == (False, "")
    status, reply = operator.change("main/w1", {"mode": "drain"})
    assert (status, reply["error"]) == (403, found["why_read_only"])
    assert "set admin.user and admin.password_file" in reply["error"]
    page = operator.ask("/balancer-manager")[1]
    assert "read-only: " in page
    assert "<form" not in page


@pytest.mark.parametrize("kind", ["plain", "scrypt", "pbkdf2"])
def test_a_login_is_asked_for_and_is_in_the_log(start, tmp_path, kind):
    lines = {
        "plain": "corréct horse",
        "scrypt": hash_password("corréct horse"),
        "pbkdf2": "pbkdf2_sha256:1000:c2FsdHNhbHQ=:" + _pbkdf2("corréct horse", b"saltsalt"),
    }
    file = tmp_path / "password"
    file.write_text(lines[kind] + "\n")
    file.chmod(0o600)
    gateway = start(admin={"listen": "0.0.0.0:0", "user": "alice", "password_file": file})
    operator = Operator(gateway.endpoints["admin"].replace("0.0.0.0", "127.0.0.1"))
    for header in (
        "",
        "Basic ",
        "Basic !!",
        "Bearer x",
        login("alice", "wrong"),
        login("bob", "corréct horse"),
        login("alice", ""),
    ):
        status, _, headers = operator.ask("/balancer-manager", authorization=header)
        assert (status, headers["www-authenticate"]) == (
            401,
            'Basic realm="relay", charset="UTF-8"',
        )
    assert operator.ask("/api/pools/main/w1", "POST", b"{}")[0] == 401
    assert operator.ask("/metrics")[0] == 200
    operator.headers["authorization"] = login("alice", "corréct horse")
    assert operator.change("main/w1", {"mode": "drain"})[0] == 200
    gateway.wait_for_log("backend main/w1 is changed by alice at 127.0.0.1: drain")
    assert "horse" not in gateway.log()


def _pbkdf2(password, salt):
    import base64
    import hashlib

    return base64.b64encode(hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 1000)).decode()


@pytest.mark.parametrize(
    ("line", "mode", "why"),
    [
        ("secret", 0o644, "holds a plain password and has mode 0644"),
        ("", 0o600, "does not hold one line"),
        ("a\nb", 0o600, "does not hold one line"),
        ("scrypt:1:2:3", 0o600, "cannot be used"),
        (None, 0o600, "No such file"),
    ],
)
def test_a_password_file_that_cannot_be_used_stops_the_start(body, tmp_path, line, mode, why):
    file = tmp_path / "password"
    if line is not None:
        file.write_text(line)
        file.chmod(mode)
    gateway = Gateway(body, admin={"user": "alice", "password_file": file})
    try:
        for command in ("check", "start"):
            done = gateway.command(command)
            assert done.returncode == 78
            assert why in done.stderr
            assert "secret" not in done.stderr
    finally:
        gateway.close()


def test_a_unix_socket_serves_the_page_and_takes_changes(start, short_path):
    path = short_path / "admin.sock"
    gateway = start(admin={"listen": f"unix:{path}"})
    assert gateway.endpoints["admin"] == f"unix:{path}"
    assert path.stat().st_mode & 0o777 == 0o660
    operator = Operator(gateway.endpoints["admin"])
    assert operator.change("main/w1", {"mode": "drain"})[0] == 200
    gateway.wait_for_log("backend main/w1 is changed by unix socket: drain")
    assert gateway.command("check").returncode == 0
    assert f"admin: unix:{path}" in gateway.command("status").stdout
    assert gateway.stop() == 0
    assert not path.exists()


# What a change survives.


def test_a_change_for_a_time_undoes_itself(shared, operator):
    operator.change("main/w1", {"mode": "disabled"})
    operator.change("main/w1", {"mode": "standby", "duration_s": 1.5})
    assert operator.backend()["mode"] == "standby"
    wait_until("what was there before is back", lambda: operator.backend()["mode"] == "disabled")
    shared.wait_for_log("an override has expired: standby until")


def test_a_change_survives_killed_workers_and_admin_process(start, pki):
    gateway = start(relay={"workers": 1})
    operator = Operator(gateway.endpoints["admin"])
    operator.change("main/w1", {"mode": "disabled"})
    before = gateway.workers()
    os.kill(before[0], signal.SIGKILL)
    gateway.wait_for_workers(lambda workers: workers and workers != before)
    for _ in range(4):
        with connect(gateway, pki) as session:
            session.sendall(b"x")
            assert session.recv(1) == b"x"
    assert operator.backend("w1")["elected"] == 0
    _kill_admin(gateway)
    assert wait_until(
        "the next one serves", lambda: _quietly(lambda: operator.backend()["mode"] == "disabled")
    )
    assert operator.change("main/w1", {"mode": "none"})[0] == 200


def _kill_admin(gateway):
    gateway.child("relay.admin.main").kill()


def _quietly(ask):
    try:
        return ask()
    except (OSError, AssertionError):
        return False


def test_a_change_survives_a_reload_even_without_its_backend(start, body, pki, addresses):
    gateway = start()
    operator = Operator(gateway.endpoints["admin"])
    operator.change("main/w2", {"mode": "drain"})
    operator.change("main/w1", {"weight": 3})
    gateway.write(listener_table(route_table(pki)) + pool_table(pki, addresses[:1]))
    assert gateway.command("reload").returncode == 0
    assert operator.backend("w1")["weight"] == 3
    (inactive,) = operator.pools()["inactive"]
    assert (inactive["backend"], inactive["mode"]["value"]) == ("w2", "drain")
    assert "Unused overrides" in operator.ask("/balancer-manager")[1]
    gateway.wait_for_log(
        "backend main/w2 is overridden (drain), but the configuration has no such backend"
    )
    status, reply = operator.change("main/w2", {"mode": "enabled"})
    assert (status, "can only be cleared" in reply["error"]) == (400, True)
    gateway.write(body)
    assert gateway.command("reload").returncode == 0
    assert operator.backend("w2")["mode"] == "drain"
    assert operator.pools()["inactive"] == []


def test_a_change_survives_a_restart_unless_it_has_expired(start):
    gateway = start()
    operator = Operator(gateway.endpoints["admin"])
    operator.change("main/w1", {"mode": "drain"})
    operator.change("main/w2", {"weight": 7, "duration_s": 0.2})
    assert (gateway.state_dir / "overrides.json").stat().st_mode & 0o777 == 0o600
    gateway.kill()
    gateway.start()
    operator = Operator(gateway.endpoints["admin"])
    assert operator.backend("w1")["mode"] == "drain"
    wait_until("the other is undone", lambda: operator.backend("w2")["weight"] == 1)


@pytest.mark.parametrize(
    "text", ["", "nonsense", '{"version": 2}', '{"version": 1, "overrides": [{"pool": 1}]}']
)
def test_a_broken_file_is_put_aside_and_said(body, text):
    gateway = Gateway(body, admin={})
    try:
        gateway.state_dir.mkdir()
        (gateway.state_dir / "overrides.json").write_text(text)
        gateway.start()
        assert (
            "no backend is overridden now, and the file is kept as overrides.broken"
            in gateway.log()
        )
        assert (gateway.state_dir / "overrides.broken").read_text() == text
        assert gateway.command("backend", "drain", "main/w1").returncode == 0
    finally:
        gateway.close()


def test_a_backend_can_be_drained_while_the_disk_takes_no_file(start):
    gateway = start()
    (gateway.state_dir / "overrides.new").mkdir()
    done = gateway.command("backend", "drain", "main/w1")
    assert (done.returncode, done.stdout) == (0, "main/w1: drain\n")
    assert "it would be lost at a restart" in done.stderr
    assert Operator(gateway.endpoints["admin"]).backend()["mode"] == "drain"


def test_a_new_login_holds_after_a_reload(start, body, tmp_path):
    gateway = start()
    operator = Operator(gateway.endpoints["admin"])
    assert operator.ask("/balancer-manager")[0] == 200
    file = tmp_path / "password"
    file.write_text("one")
    file.chmod(0o600)
    gateway.write(body, admin={"user": "alice", "password_file": file})
    assert gateway.command("reload").returncode == 0
    wait_until(
        "the login is asked for",
        lambda: _quietly(lambda: operator.ask("/balancer-manager")[0] == 401),
    )
    operator.headers["authorization"] = login("alice", "one")
    assert operator.ask("/balancer-manager")[0] == 200
    file.write_text("two")
    assert gateway.command("reload").returncode == 0
    wait_until(
        "the new password holds",
        lambda: _quietly(
            lambda: operator.ask("/balancer-manager", authorization=login("alice", "two"))[0] == 200
        ),
    )
    assert operator.ask("/balancer-manager")[0] == 401


# The command line.


def test_the_command_line_lists_and_changes(shared, operator):
    for arguments, now in (
        (("drain", "main/w1", "--for", "10m"), "drain until "),
        (("disable", "main/w1"), "disabled"),
        (("standby", "main/w1"), "standby"),
        (("weight", "main/w1", "4"), "standby, weight 4"),
        (("enable", "main/w1"), "weight 4"),
        (("clear", "main/w1"), "as configured"),
    ):
        done = shared.command("backend", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"main/w1: {now}")
    shared.command("backend", "weight", "main/w2", "8")
    lines = shared.command("backend", "list").stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["backend=main/w1", "backend=main/w2"]
    assert "weight=8" in lines[1]
    assert lines[1].endswith("overridden=weight:8")
    assert "(relay backend): drain until" in shared.log()


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("drain", "main"), 64, "is not POOL/BACKEND"),
        (("drain", "main/w1", "--for", "soon"), 64, "is not a duration"),
        (("weight", "main/w1", "900"), 64, "is not in the range"),
        (
            ("drain", "main/w9"),
            64,
            "there is no backend main/w9: pool main has w1, w2; see: relay backend list",
        ),
        (
            ("clear", "nowhere/w1"),
            64,
            (
                "there is no backend nowhere/w1: there is no pool nowhere either; pools: main; "
                "see: relay backend list"
            ),
        ),
    ],
)
def test_the_command_line_refuses_in_one_line(shared, arguments, code, why):
    done = shared.command("backend", *arguments)
    assert done.returncode == code
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


# Behaviour under load, and towards the supervisor.


def test_metrics_and_page_take_less_than_50_ms_under_load(shared, operator, pki):
    done = threading.Event()

    def load():
        while not done.is_set():
            with contextlib.suppress(OSError), connect(shared, pki) as session:
                for _ in range(20):
                    session.sendall(b"x" * 16_000)
                    session.recv(16_000)

    clients = [threading.Thread(target=load) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        for path in ("/metrics", "/balancer-manager", "/api/pools"):
            times = []
            for _ in range(12):
                started = time.monotonic()
                assert operator.ask(path)[0] == 200
                times.append(time.monotonic() - started)
            # The load shares the CPUs with this test: the best time is the cost, the
            # median includes waiting.
            assert min(times) < 0.05, (path, times)
    finally:
        done.set()
        for client in clients:
            client.join(20)


def test_a_stopped_supervisor_delays_changes_but_not_the_page(
    start,
):
    gateway = start()
    operator = Operator(gateway.endpoints["admin"])
    token = operator.pools()["csrf"]
    gateway.signal(signal.SIGSTOP)
    try:
        assert operator.ask("/balancer-manager")[0] == 200
        status, reply = operator.change("main/w1", {"mode": "drain"}, token)
        assert (status, "did not answer within" in reply["error"]) == (503, True)
    finally:
        gateway.signal(signal.SIGCONT)
    # The late answer to the first request is not taken for the second one's.
    assert operator.change("main/w2", {"weight": 3})[1]["backend"] == "w2"


def test_the_admin_process_can_do_no_more_than_change_backends():
    import selectors

    from relay.supervisor.admin_channel import AdminChannel

    asked = []
    selector = selectors.PollSelector()
    channel = AdminChannel(selector, lambda request: asked.append(request) or {"ok": True})
    with channel.open({"hello": 1}) as theirs:
        theirs.settimeout(5)
        for line in (
            b'{"command": "stop"}\n',
            b"nonsense\n",
            b"[]\n",
            b'{"command": "backends", "id": 7}\n',
        ):
            theirs.sendall(line)
        with theirs.makefile("rb") as reader:
            assert json.loads(reader.readline()) == {"hello": 1}
            replies = []
            while len(replies) < 4:
                for key, events in selector.select(1):
                    key.data(events)
                replies += [json.loads(reader.readline()) for _ in range(4)]
        assert [reply["ok"] for reply in replies] == [False, False, False, True]
        assert replies[3]["id"] == 7
        assert [request["command"] for request in asked] == ["backends"]
        theirs.sendall(b"x" * 10_000)
        for key, events in selector.select(1):
            key.data(events)
        with contextlib.suppress(ConnectionResetError):
            assert theirs.recv(1) == b""
    assert not selector.get_map()
    selector.close()


def test_a_port_of_the_operator_is_not_one_of_a_client(shared):
    with socket.create_connection(shared.address()) as client:
        client.sendall(b"GET /balancer-manager HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert b"200" not in client.recv(1000)
