"""SRV records are looked up in a real DNS server; bad answers are bounded and named."""

from __future__ import annotations

import subprocess
import sys

import pytest

from relay.checker import service_lookup
from relay.checker.host_lookup import NoSuchNameError
from relay.checker.lookup import look_up
from relay.shared.addresses import Located
from relay.shared.entities import MAX_ADDRESSES
from tests.support.dns_server import DnsServer, possible

pytestmark = pytest.mark.skipif(not possible(), reason="needs root, for port 53")

NAME = "_https._tcp.app.test"
NAME_IN_CONFIG = f"srv:{NAME}"


@pytest.fixture
def dns():
    with DnsServer() as server:
        yield server


@pytest.fixture(autouse=True)
def conf(dns, tmp_path, monkeypatch):
    """resolv.conf, rewritten by `conf(lines…)`."""
    file = tmp_path / "resolv.conf"
    monkeypatch.setattr(service_lookup, "RESOLV_CONF", str(file))

    def write(*lines):
        file.write_text("".join(f"{line}\n" for line in (*lines, "options timeout:1")))

    write(f"nameserver {dns.address}")
    return write


def found(name=NAME):
    return look_up(f"srv:{name}")


def test_records_come_with_port_priority_and_weight(dns):
    dns.set(NAME, "SRV", "20 0 8444 b.test", "10 5 8443 a.test", ttl=77)
    dns.set("a.test", "A", "127.0.0.1", ttl=60)
    dns.set("a.test", "AAAA", "::1", ttl=44)
    dns.set("b.test", "A", "127.0.0.2", ttl=300)
    assert found() == (
        (
            Located("127.0.0.1", 0, 8443, 10, 5, 2),
            Located("::1", 0, 8443, 10, 5, 2),
            Located("127.0.0.2", 0, 8444, 20, 0, 1),
        ),
        44.0,
        "",
        "",
    )


def test_addresses_that_come_along_are_not_asked_for(dns):
    dns.hints = True
    dns.set(NAME, "SRV", "10 5 8443 a.test")
    dns.set("a.test", "A", "127.0.0.1")
    assert found().located == (Located("127.0.0.1", 0, 8443, 10, 5),)
    assert {kind for _, kind, _ in dns.asked} == {"SRV"}


def test_a_long_answer_comes_over_tcp(dns):
    dns.set(NAME, "SRV", *(f"10 1 {8000 + number} a.test" for number in range(50)))
    dns.set("a.test", "A", "127.0.0.1")
    assert len(found().located) == 50
    assert dns.asked[NAME, "SRV", "tcp"] == 1


def test_a_silent_server_is_followed_by_the_next(dns, conf):
    dns.set(NAME, "SRV", "10 5 8443 a.test")
    dns.set("a.test", "A", "127.0.0.1")
    with DnsServer() as silent:
        silent.ignore(NAME)
        silent.ignore("a.test")
        conf(f"nameserver {silent.address}", f"nameserver {dns.address}")
        assert len(found().located) == 1
        assert silent.asked[NAME, "SRV", "udp"]


def test_the_search_domain_completes_a_short_name(dns, conf):
    conf(f"nameserver {dns.address}", "search app.test other.test", "options ndots:3")
    dns.set(NAME, "SRV", "10 5 8443 a.test")
    dns.set("a.test", "A", "127.0.0.1")
    assert len(found("_https._tcp").located) == 1


@pytest.mark.parametrize(
    ("arrange", "said"),
    {
        "SERVFAIL": (lambda dns: dns.fail(NAME), "SERVFAIL"),
        "a silent server": (lambda dns: dns.ignore(NAME), "no answer in time"),
        "only an IP address as target": (
            lambda dns: dns.set(NAME, "SRV", "1 1 443 10.0.0.1"),
            "10.0.0.1:443 is an IP address",
        ),
        "port 0": (lambda dns: dns.set(NAME, "SRV", "1 1 0 a.test"), "a.test:0 has port 0"),
        "control characters": (
            lambda dns: dns.set(NAME, "SRV", r"1 1 443 a\027\010b.test"),
            r"a\027\010b.test:443 has the label",
        ),
        "a loop of aliases": (
            lambda dns: (dns.set(NAME, "CNAME", "b.test."), dns.set("b.test", "CNAME", NAME + ".")),
            "",
        ),
        "a target without an address": (
            lambda dns: dns.set(NAME, "SRV", "1 1 443 nowhere.invalid"),
            "nowhere.invalid",
        ),
    }.values(),
    ids=["servfail", "silent", "ip", "port", "control", "loop", "address"],
)
def test_an_answer_without_a_usable_record_is_an_error(dns, arrange, said):
    arrange(dns)
    with pytest.raises(OSError, match=r".") as raised:
        found()
    assert not isinstance(raised.value, NoSuchNameError)
    assert said in raised.value.strerror
    assert raised.value.strerror.isprintable()
    assert len(raised.value.strerror) < 700


def test_nxdomain_is_told_apart_from_an_error():
    with pytest.raises(NoSuchNameError):
        found("_https._tcp.gone.test")


def test_a_dot_as_target_says_that_the_service_is_not_there(dns):
    dns.set(NAME, "SRV", "0 0 0 .")
    assert (found().located, found().nothing[:30]) == ((), "the target of its SRV record i")
    dns.set(NAME, "SRV")
    assert found().nothing == "it has no SRV record"


def test_bad_records_beside_good_ones_are_left_out_by_name(dns):
    dns.set(NAME, "SRV", "1 1 443 10.0.0.1", "1 1 0 a.test", "2 1 443 a.test", "1 1 443 gone.test")
    dns.set("a.test", "A", "127.0.0.1")
    assert [each.priority for each in found().located] == [2]
    for part in ("10.0.0.1:443 is an IP", "a.test:0 has port 0", "gone.test"):
        assert part in found().left_out


def test_a_thousand_records_are_bounded_always_in_the_same_way(dns):
    records = [f"{number % 7} 1 {1000 + number} a.test" for number in range(1000)]
    dns.set(NAME, "SRV", *records)
    dns.set("a.test", "A", "127.0.0.1")
    first = found()
    assert len(first.located) == MAX_ADDRESSES
    assert {each.priority for each in first.located} == {0}
    assert f"addresses beyond {MAX_ADDRESSES}" in first.left_out
    dns.set(NAME, "SRV", *reversed(records))
    assert found() == first


def test_a_target_that_cannot_be_asked_for_keeps_its_addresses(dns):
    dns.set(NAME, "SRV", "1 1 443 a.test", "1 1 443 b.test")
    dns.set("a.test", "A", "127.0.0.1")
    dns.set("b.test", "A", "127.0.0.2")
    before = found()
    dns.fail("b.test")
    dns.set("a.test", "A", "127.0.0.3")
    after = found()
    assert {each.ip for each in after.located} == {"127.0.0.3", "127.0.0.2"}
    assert "SERVFAIL" in after.left_out
    assert before.left_out == ""


def test_targets_of_earlier_answers_are_forgotten(dns):
    """A service whose targets have new names each time must not fill the memory."""
    dns.hints = True
    for number in range(20):
        target = f"pod-{number}.test"
        dns.set(NAME, "SRV", f"10 5 8443 {target}")
        dns.set(target, "A", "127.0.0.1")
        assert len(found().located) == 1
    assert [*service_lookup._last[NAME_IN_CONFIG]] == ["pod-19.test"]


def test_a_target_in_the_hosts_file_only_is_found(dns):
    dns.set(NAME, "SRV", "1 1 443 localhost")
    assert {each.ip for each in found().located} <= {"127.0.0.1", "::1"}


def test_a_changed_resolv_conf_is_read_at_the_next_look_up(dns, conf):
    dns.set(NAME, "SRV", "1 1 443 a.test")
    dns.set("a.test", "A", "127.0.0.1")
    found()
    with DnsServer() as other:
        other.set(NAME, "SRV", "1 1 444 a.test")
        other.set("a.test", "A", "127.0.0.1")
        conf(f"nameserver {other.address}")
        assert [each.port for each in found().located] == [444]


def test_a_service_look_up_loads_no_module(dns, conf, tmp_path):
    """The checker may have lost the right to read Python's files by then."""
    dns.set(NAME, "SRV", "1 1 443 a.test", *(f"9 1 {number} a.test" for number in range(1, 60)))
    dns.set("a.test", "A", "127.0.0.1")
    code = (
        "import sys\n"
        "from relay.checker import lookup, service_lookup\n"
        f"lookup.preload(['srv:{NAME}'])\n"
        f"service_lookup.RESOLV_CONF = {str(tmp_path / 'resolv.conf')!r}\n"
        "before = set(sys.modules)\n"
        f"lookup.look_up('srv:{NAME}')\n"
        "assert set(sys.modules) == before, set(sys.modules) - before\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=30, check=True)
