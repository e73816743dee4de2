"""`relay import-haproxy`: TLS on both sides in `mode tcp`."""

from __future__ import annotations

import subprocess

import pytest
import tomli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.cli.import_haproxy import import_haproxy
from relay.importer.haproxy import convert_haproxy
from relay.importer.haproxy_parser import HaproxyParser
from relay.supervisor.check import check_all
from relay.tls.certificates.findings import Level
from tests.importer.conftest import CONFIGS, Result, free_ports
from tests.importer.test_fuzz import Memory
from tests.support.programs import find, needs

TEXT = (CONFIGS / "haproxy.cfg").read_text()


@pytest.fixture
def from_haproxy(filled, files, tmp_path, capsys):
    pair = (files / "gateway.pem").read_bytes() + (files / "gateway.key").read_bytes()
    (files / "gateway-pair.pem").write_bytes(pair)

    def run(text=TEXT):
        path = filled(text, "haproxy.cfg")
        code = import_haproxy.callback((str(path),), tmp_path / "out", probe=False, force=True)
        said = capsys.readouterr()
        if code == 0:
            free_ports(tmp_path / "out" / "relay.toml")
        return Result(code, tmp_path / "out", said.out, said.err)

    return run


def test_frontends_and_backends_become_listeners_and_pools(from_haproxy):
    result = from_haproxy()
    assert (result.code, result.err) == (0, "")
    (listener,) = result.config.listener
    assert [(route.sni, route.pool) for route in listener.route] == [
        (("b.example.com", "www.b.example.com"), "pool_b"),
        (("*.c.example.com",), "pool_c"),
        ((), "pool-a"),
    ]
    assert listener.idle_s == 60
    pools = result.config.pool
    assert pools["pool-a"].balance == "least_connections"
    assert pools["pool_b"].balance == "hash"
    assert (pools["pool_c"].sticky, pools["pool_c"].send_proxy) == ("source", "v2")
    first, second = pools["pool-a"].backend
    assert (first.weight, first.name) == (3, "backend.example.com")
    assert (second.standby, second.max_connections) == (True, 50)
    assert ": by hand: " in result.verdict("use_backend pool_c if { ssl_fc_sni -i d")
    report = check_all(result.loaded, offline=True)
    assert not [one for one in report.findings if one.level is Level.ERROR]
    assert not report.problems


@needs("haproxy")
def test_haproxy_accepts_the_configuration_too(from_haproxy, tmp_path):
    from_haproxy()
    command = [find("haproxy"), "-c", "-f", str(tmp_path / "haproxy.cfg")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "rule",
    [
        "tcp-request content reject unless { ssl_c_s_dn(cn) -m str alice }",
        "tcp-request connection reject if { src 10.0.0.0/8 }",
        "use_backend tarpit if { ssl_c_s_dn(cn) -m str mallory }",
    ],
)
def test_a_frontend_with_rules_admits_nobody_at_first(from_haproxy, rule):
    result = from_haproxy(
        TEXT.replace("    default_backend pool.a", f"    {rule}\n    default_backend pool.a")
    )
    allowed = {route.allow.cn for route in result.config.listener[0].route}
    assert allowed == {("BY HAND: write who is allowed",)}
    assert "nobody is admitted until" in result.verdict(rule[:20])


def test_only_binds_with_the_same_settings_are_one_listener(from_haproxy):
    result = from_haproxy(
        TEXT.replace(
            "    default_backend pool.a",
            "    bind ipv4@:444 ssl crt x\n    bind /run/x.sock ssl\n    default_backend pool.a",
            1,
        )
    )
    assert len(result.config.listener[0].listen) == 2
    assert "not in listen" in result.verdict("bind ipv4@:444")
    assert ": lost: relay listens on TCP only" in result.verdict("bind /run/x.sock")


def test_clients_without_a_certificate_are_announced_as_refused(from_haproxy):
    result = from_haproxy(
        TEXT.replace("ca.pem verify required ssl-min", "ca.pem verify optional ssl-min")
    )
    assert ": lost: " in result.verdict("bind 127.0.0.1:443")


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.sampled_from(TEXT.split("\n")), max_size=40),
    st.integers(0, len(TEXT)),
    st.text(max_size=8),
    st.binary(max_size=60),
)
def test_any_mixture_of_lines_is_read(lines, at, put, junk):
    mixed = "\n".join(lines)
    for data in (mixed[:at] + put + mixed[at:], TEXT[:at] + put + TEXT[at + 9 :]):
        parser = HaproxyParser({})
        parser.add("/etc/haproxy.cfg", data.encode("utf-8", "replace") + junk)
        imported = convert_haproxy(parser, Memory(b""), {})
        tomli.loads(imported.toml)
        assert all(line.isprintable() for line in imported.report.lines(imported.read))


def test_tls_settings_of_global_hold_for_every_line(from_haproxy):
    """A least version that is lost would admit clients whom HAProxy refused."""
    options = (
        "global\n    ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets\n"
        "    ssl-default-server-options force-tlsv13\n"
    )
    text = TEXT.replace(" ssl-min-ver TLSv1.2", "").replace("global\n", options, 1)
    result = from_haproxy(text)
    assert {route.min_version for route in result.config.listener[0].route} == {"TLSv1.3"}
    assert {route.session_tickets for route in result.config.listener[0].route} == {False}
    assert {pool.min_version for pool in result.config.pool.values()} == {"TLSv1.3"}
    assert ": same: keys of each route" in result.verdict("ssl-default-bind-options")
