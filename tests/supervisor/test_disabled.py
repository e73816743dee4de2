"""A certificate or name that cannot be used disables what needs it, and no more."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta

import pytest

from relay.demo.ca import Authority, LeafSpec, to_pem
from tests.support.client import context_of, talk
from tests.support.gateway import wait_until
from tests.support.stub_relay import STUB, Clock, stub

NOW = datetime.now(UTC)
PAST = {"not_before": NOW - timedelta(days=60), "not_after": NOW - timedelta(days=1)}
FUTURE = {"not_before": NOW + timedelta(days=1), "not_after": NOW + timedelta(days=60)}
SOON = stub(recheck_s=0.2)


def gateway_certificate(pki, **dates):
    wanted = LeafSpec("gateway", dns=("bad.example.com",), purposes=("server",), **dates)
    return pki.write(pki.authority.issue(wanted))


def machine_certificate(pki, **dates):
    return pki.write(pki.authority.issue(LeafSpec("machine", purposes=("client",), **dates)))


def write_two(pki, echo, *, shown=None, client_ca=None, machine=None, backend_ca=None, address=""):
    """A route bad.example.com with its own pool, and a good one for all other names."""
    shown, machine = shown or pki.gateway, machine or pki.machine
    text = '[[listener]]\nname = "https"\nlisten = ["127.0.0.1:0"]\n'
    for sni, pool, pair, ca in (
        ('["bad.example.com"]', "bad", shown, client_ca or pki.ca),
        ("[]", "good", pki.gateway, pki.ca),
    ):
        text += (
            f'[[listener.route]]\nsni = {sni}\npool = "{pool}"\n'
            f'certificate = "{pair.certificate}"\n'
            f'private_key = "{pair.key}"\nclient_ca = "{ca}"\n'
        )
    for pool, pair, ca, where in (
        ("bad", machine, backend_ca or pki.ca, address or echo.address),
        ("good", pki.machine, pki.ca, echo.address),
    ):
        text += (
            f'[pool.{pool}]\nmachine_certificate = "{pair.certificate}"\n'
            f'machine_key = "{pair.key}"\nbackend_ca = "{ca}"\n'
            f'[[pool.{pool}.backend]]\nroute = "w1"\naddress = "{where}"\n'
            'name = "backend.example.com"\n'
        )
    return text


def ask_bad(pki, gateway):
    """What a client of bad.example.com gets: the answer, or its library's error."""
    context = context_of(pki)
    context.check_hostname = False
    raw = socket.create_connection(("127.0.0.1", gateway.port()), 20)
    try:
        with context.wrap_socket(raw, server_hostname="bad.example.com") as tls:
            tls.sendall(b"hello")
            return tls.recv(100)
    except (ssl.SSLError, ConnectionError) as error:
        return str(error)


def page(gateway, path):
    try:
        with urllib.request.urlopen(f"{gateway.admin_url}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metric(gateway, line):
    return wait_until(
        f"/metrics has {line}", lambda: line in page(gateway, "/metrics")[1].splitlines()
    )


def bundle(pki, *authorities):
    file = pki.directory / f"bundle-{len(list(pki.directory.iterdir()))}.pem"
    file.write_bytes(to_pem([each.certificate for each in authorities]))
    return file


def expired_root(pki):
    root = Authority.root("Old root", **PAST)
    return bundle(pki, root, root.intermediate("Issuing"))


CASES = {
    "expired certificate": (
        lambda pki: {"shown": gateway_certificate(pki, **PAST)},
        "route",
        "expired on",
    ),
    "future certificate": (
        lambda pki: {"shown": gateway_certificate(pki, **FUTURE)},
        "route",
        "is not valid before",
    ),
    "expired client_ca": (
        lambda pki: {
            "client_ca": Authority.root("Old CA", **PAST).write(pki.directory / "old-ca.pem")
        },
        "route",
        "expired on",
    ),
    "no ca of the file valid yet or still": (
        lambda pki: {
            "client_ca": bundle(pki, Authority.root("A", **PAST), Authority.root("B", **FUTURE))
        },
        "route",
        "is not valid before",
    ),
    "issuing ca below an expired root": (
        lambda pki: {"client_ca": expired_root(pki)},
        "route",
        "expired on",
    ),
    "expired machine certificate": (
        lambda pki: {"machine": machine_certificate(pki, **PAST)},
        "pool",
        "expired on",
    ),
    "expired backend_ca": (
        lambda pki: {
            "backend_ca": Authority.root("Old CA", **PAST).write(pki.directory / "old-ca2.pem")
        },
        "pool",
        "expired on",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_needs_it_is_disabled_and_the_rest_serves(relay, pki, echo, case):
    make, kind, words = CASES[case]
    gateway = relay(write_two(pki, echo, **make(pki)), relay={"workers": 1}, admin={})
    assert talk(pki, gateway.port()) == b"hello"
    told = ask_bad(pki, gateway)
    assert "INTERNAL_ERROR" in told.upper().replace(" ", "_"), told
    [line] = gateway.wait_for_access(reason=f"{kind}_disabled")
    assert (line["side"], line["route"], line["listener"]) == (
        "inbound",
        "bad.example.com",
        "https",
    )
    assert words in line["detail"]
    assert "renew the file" in line["remedy"]
    thing = "route https/bad.example.com" if kind == "route" else "pool bad"
    log = gateway.wait_for_log(f"{thing} is disabled: ")
    assert words in log
    assert f"{thing} is disabled: " in gateway.command("status").stdout
    metric(gateway, 'relay_route_disabled{listener="https",route="bad.example.com"} 1.0')
    metric(gateway, 'relay_route_disabled{listener="https",route="default"} 0.0')
    metric(gateway, f'relay_backend_up{{backend="w1",pool="bad"}} {float(kind == "route")}')
    metric(gateway, 'relay_backend_up{backend="w1",pool="good"} 1.0')
    assert words in page(gateway, "/balancer-manager")[1]
    api = json.loads(page(gateway, "/api/pools")[1])
    pool = next(one for one in api["pools"] if one["name"] == "bad")
    assert bool(api["routes_disabled"]) == (kind == "route")
    assert (words in pool["disabled"], pool["backends"][0]["status"]) == (
        (True, "disabled") if kind == "pool" else (False, "ok")
    )
    assert page(gateway, "/readyz")[0] == 200
    assert gateway.command("check").returncode == 78


@pytest.mark.parametrize("case", CASES)
def test_a_strict_start_and_reload_refuse_it(relay, pki, echo, case):
    make, _, words = CASES[case]
    gateway = relay(write_two(pki, echo, **make(pki)), start=False)
    refused = gateway.command("start", "--strict")
    assert refused.returncode == 78
    assert words in refused.stderr


def test_a_strict_relay_refuses_it_at_a_reload_too(relay, pki, echo):
    gateway = relay(write_two(pki, echo), start=False)
    gateway.module = ("tests.support.strict_relay",)
    gateway.start()
    gateway.write(write_two(pki, echo, shown=gateway_certificate(pki, **PAST)))
    refused = gateway.command("reload")
    assert refused.returncode == 78
    assert "expired on" in refused.stderr
    gateway.write(write_two(pki, echo, address="no-such-host.invalid:1"))
    assert "does not resolve" in gateway.command("reload").stderr


def renew(old, new):
    """As a renewal does: the key, then the certificate, each in one step."""
    for source, target in ((new.key, old.key), (new.certificate, old.certificate)):
        beside = target.with_suffix(".new")
        shutil.copy(source, beside)
        beside.replace(target)


def serves_again(pki, gateway):
    """The workers get renewed files a moment after the log has said so."""
    wait_until("it serves", lambda: ask_bad(pki, gateway) == b"hello", detail=gateway.log)


@pytest.mark.parametrize("watch_s", [0, 0.1])
@pytest.mark.parametrize("kind", ["route", "pool"])
def test_it_comes_back_by_itself_when_the_file_is_renewed(relay, pki, echo, kind, watch_s):
    """Without the watcher, files that disable something are read from time to time."""
    make = gateway_certificate if kind == "route" else machine_certificate
    old = make(pki, **PAST)
    text = write_two(pki, echo, **{"shown" if kind == "route" else "machine": old})
    gateway = relay(text, module=STUB, env=SOON, relay={"workers": 1, "watch_s": watch_s}, admin={})
    assert "INTERNAL_ERROR" in ask_bad(pki, gateway).upper().replace(" ", "_")
    renew(old, make(pki))
    gateway.wait_for_log("renewed in place: ")
    gateway.wait_for_log("is no longer disabled")
    serves_again(pki, gateway)
    assert gateway.endpoints["generation"] == 1
    metric(gateway, 'relay_route_disabled{listener="https",route="bad.example.com"} 0.0')
    assert "is disabled" not in gateway.command("status").stdout


def test_when_one_of_two_reasons_goes_the_other_one_is_told(relay, pki, echo):
    old = gateway_certificate(pki, **PAST)
    old_ca = Authority.root("Old CA", **PAST).write(pki.directory / "old-ca3.pem")
    text = write_two(pki, echo, shown=old, client_ca=old_ca)
    gateway = relay(text, module=STUB, env=SOON, relay={"workers": 1}, admin={})
    gateway.wait_for_log("is disabled: listener.https.route[0].certificate: ")
    renew(old, gateway_certificate(pki))
    gateway.wait_for_log("is disabled: listener.https.route[0].client_ca: ")
    wait_until("the page says so", lambda: "old-ca3.pem" in page(gateway, "/balancer-manager")[1])
    assert "old-ca3.pem" in gateway.command("status").stdout
    shutil.copy(pki.ca, old_ca)
    gateway.wait_for_log("is no longer disabled")
    serves_again(pki, gateway)


def test_an_incomplete_renewal_is_logged_once_and_used_later(relay, pki, echo):
    """The new certificate is there, its key is not: nothing that serves is touched."""
    old, new = gateway_certificate(pki, **PAST), gateway_certificate(pki)
    gateway = relay(write_two(pki, echo, shown=old), module=STUB, env=SOON, relay={"workers": 1})
    gateway.wait_for_log("route https/bad.example.com is disabled")
    shutil.copy(new.certificate, old.certificate)
    assert talk(pki, gateway.port()) == b"hello"
    shutil.copy(new.key, old.key)
    gateway.wait_for_log("is no longer disabled")
    serves_again(pki, gateway)


def test_a_renewal_uses_the_running_configuration(relay, pki, echo):
    """The operator may be editing the file, so it is not read."""
    old = gateway_certificate(pki, **PAST)
    gateway = relay(write_two(pki, echo, shown=old), module=STUB, env=SOON, relay={"workers": 1})
    gateway.wait_for_log("route https/bad.example.com is disabled")
    gateway.config.write_text("half of a ")
    renew(old, gateway_certificate(pki))
    gateway.wait_for_log("is no longer disabled")
    assert talk(pki, gateway.port()) == b"hello"


def test_a_certificate_that_expires_now_disables_its_route(relay, pki, echo):
    shown = gateway_certificate(pki, not_after=datetime.now(UTC) + timedelta(hours=1))
    gateway = relay(
        write_two(pki, echo, shown=shown), start=False, module=STUB, relay={"workers": 1}
    )
    clock = Clock(gateway.directory)
    gateway.start()
    assert ask_bad(pki, gateway) == b"hello"
    clock.shift(2 * 3600)
    gateway.wait_for_log("route https/bad.example.com is disabled: ")
    assert "INTERNAL_ERROR" in ask_bad(pki, gateway).upper().replace(" ", "_")
    assert talk(pki, gateway.port()) == b"hello"
    assert gateway.endpoints["generation"] == 1


def test_a_certificate_that_becomes_valid_enables_its_route(relay, pki, echo):
    """The relay's clock is half an hour slow, and is set right."""
    shown = gateway_certificate(pki, not_before=datetime.now(UTC) - timedelta(minutes=10))
    gateway = relay(
        write_two(pki, echo, shown=shown), start=False, module=STUB, relay={"workers": 1}
    )
    clock = Clock(gateway.directory, -30 * 60)
    gateway.start()
    gateway.wait_for_log("route https/bad.example.com is disabled: ")
    assert "INTERNAL_ERROR" in ask_bad(pki, gateway).upper().replace(" ", "_")
    clock.shift(0)
    gateway.wait_for_log("route https/bad.example.com is no longer disabled")
    assert ask_bad(pki, gateway) == b"hello"


def test_every_route_disabled_starts_and_says_so_loudly(relay, pki, body):
    old = gateway_certificate(pki, **PAST)
    text = body.replace(str(pki.gateway.certificate), str(old.certificate))
    gateway = relay(
        text.replace(str(pki.gateway.key), str(old.key)), relay={"workers": 1}, admin={}
    )
    gateway.wait_for_log("every route is disabled: no client is served")
    assert page(gateway, "/healthz")[0] == 200
    code, why = wait_until(
        "it is not ready", lambda: (p := page(gateway, "/readyz"))[0] == 503 and p
    )
    assert (code, "every route is disabled" in why) == (503, True)


def test_a_key_of_another_certificate_is_refused_whole_as_before(relay, pki, echo):
    gateway = relay(write_two(pki, echo), relay={"workers": 1})
    bad = gateway_certificate(pki, **PAST)
    gateway.write(
        write_two(pki, echo, shown=type(bad)(bad.certificate, pki.machine.key, bad.issued))
    )
    refused = gateway.command("reload")
    assert (refused.returncode, "does not belong to the certificate" in refused.stderr) == (
        78,
        True,
    )


def test_a_backend_without_an_address_is_disabled_alone(relay, pki, echo):
    text = write_two(pki, echo, address="no-such-host.invalid:1")
    gateway = relay(text, relay={"workers": 1}, admin={})
    assert talk(pki, gateway.port()) == b"hello"
    assert "INTERNAL_ERROR" in ask_bad(pki, gateway).upper().replace(" ", "_")
    [line] = gateway.wait_for_access(reason="backend_unresolved")
    assert "pool bad has an address: w1 at no-such-host.invalid:1" in line["detail"]
    assert "getent ahosts" in line["remedy"]
    gateway.wait_for_log("backend bad/w1 is disabled: no-such-host.invalid does not resolve")
    gateway.wait_for_log("; its backends have no address and are disabled; see whether")
    metric(gateway, 'relay_backend_up{backend="w1",pool="bad"} 0.0')
    api = json.loads(page(gateway, "/api/pools")[1])
    pool = next(one for one in api["pools"] if one["name"] == "bad")
    assert pool["backends"][0]["status"] == "disabled"
    assert "does not resolve" in pool["backends"][0]["disabled"]
    checked = gateway.command("check")
    assert checked.returncode == 0, checked
    [warning] = [line for line in checked.stdout.splitlines() if "does not resolve" in line]
    assert warning.startswith("warning ")
    problem = "/relay.toml:34: pool.bad.backend[0].address: no-such-host.invalid does not resolve"
    assert problem in warning
    strict = gateway.command("check", "--strict")
    assert strict.returncode == 78, strict
    assert problem in strict.stderr
    assert "1 problem; the relay would start with a part of it disabled" in strict.stderr


def test_a_pool_goes_on_without_a_backend_that_does_not_resolve(relay, pki, echo, body):
    more = '[[pool.echo.backend]]\nroute = "w2"\naddress = "no-such-host.invalid:1"\n'
    gateway = relay(body + more, relay={"workers": 1})
    for _ in range(6):
        assert talk(pki, gateway.port()) == b"hello"
    lines = gateway.wait_for_access(6)
    assert {(line["backend"], line["why"]) for line in lines} == {("w1", "balanced")}
