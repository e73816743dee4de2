"""Kicks as values: what a text names, and which client is kept out."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.kicks import (
    LONGEST_S,
    TEXT_CHARACTERS,
    Kick,
    KickList,
    Kind,
    Target,
    parse_request,
    parse_target,
)

SHA256 = "AB" * 32


def kick(text, until_at=100.0, why="", by="root"):
    return Kick(parse_target(text), by, why, 0.0, until_at)


@pytest.mark.parametrize(
    ("text", "kind", "means"),
    [
        ("192.0.2.7", Kind.ADDRESS, "192.0.2.7"),
        (" 192.0.2.7/32 ", Kind.ADDRESS, "192.0.2.7"),
        ("192.0.2.0/24", Kind.ADDRESS, "192.0.2.0/24"),
        ("2001:DB8::1", Kind.ADDRESS, "2001:db8::1"),
        ("[2001:db8::1]", Kind.ADDRESS, "2001:db8::1"),
        ("2001:db8::/48", Kind.ADDRESS, "2001:db8::/48"),
        ("fe80::1%eth0", Kind.ADDRESS, "fe80::1"),
        ("::ffff:192.0.2.7", Kind.ADDRESS, "192.0.2.7"),
        ("::ffff:192.0.2.0/120", Kind.ADDRESS, "192.0.2.0/24"),
        (SHA256.lower(), Kind.FINGERPRINT, SHA256),
        (":".join(["ab"] * 32), Kind.FINGERPRINT, SHA256),
        ("CN=alice", Kind.NAME, "CN=alice"),
        ("CN=al\\,ice,O=Corp", Kind.NAME, "CN=al\\,ice,O=Corp"),
        ("spiffe://corp/app", Kind.NAME, "spiffe://corp/app"),
    ],
)
def test_a_text_names_one_kind_of_client(text, kind, means):
    assert parse_target(text) == Target(kind, means)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("CN=a\nb", "not printable"),
        ("CN=" + "a" * 2000, "too long"),
        ("alice", "names no client"),
        ("192.0.2.7:443", "address without a port"),
        ("192.0.2.7/24", "write 192.0.2.0/24"),
        ("2001:db8::1/48", "write 2001:db8::/48"),
        ("0.0.0.0/0", "every client"),
        ("::/0", "every client"),
        ("::ffff:0:0/96", "every client"),
        ("AB" * 20, "SHA-1"),
        (":".join(["AB"] * 20), "SHA-1"),
        ("AB" * 31, "names no client"),
    ],
)
def test_a_text_that_names_no_client_is_refused(text, why):
    with pytest.raises(ValueError, match=why):
        parse_target(text)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({}, "target"),
        ({"target": 7}, "target"),
        ({"target": "CN=a", "duration_s": -1}, "duration_s"),
        ({"target": "CN=a", "duration_s": LONGEST_S + 1}, "duration_s"),
        ({"target": "CN=a", "duration_s": float("nan")}, "duration_s"),
        ({"target": "CN=a", "duration_s": True}, "duration_s"),
        ({"target": "CN=a", "duration_s": "10m"}, "duration_s"),
    ],
)
def test_a_request_with_wrong_types_is_refused(request_, why):
    with pytest.raises(ValueError, match=why):
        parse_request(request_, 0)


def test_what_an_operator_writes_becomes_one_short_line():
    asked = parse_request({"target": "CN=a", "by": "ev\nil", "why": "x" * 999}, 7)
    assert asked.by == "ev?il (uid 7)"
    assert asked.why == "x" * TEXT_CHARACTERS
    assert parse_request({"target": "CN=a", "by": 7}, 0).by == "unknown (uid 0)"


def test_an_address_is_found_in_the_networks_that_hold_it():
    kicks = KickList([kick("10.0.0.0/8"), kick("192.0.2.7"), kick("2001:db8::/48")])
    for host in ("10.1.2.3", "::ffff:10.1.2.3", "192.0.2.7", "2001:db8::9", "2001:db8::9%eth0"):
        assert kicks.of_address(host, 0.0), host
    for host in ("11.0.0.0", "192.0.2.8", "2001:db9::9", "::a01:203"):
        assert kicks.of_address(host, 0.0) is None, host


def test_a_certificate_is_found_by_its_fingerprint_and_its_names():
    kicks = KickList([kick("CN=alice"), kick(SHA256), kick("spiffe://corp/app")])
    assert kicks.of_names("00" * 32, ["CN=alice,O=x", "CN=alice"], 0.0)
    assert kicks.of_names(SHA256, ["CN=bob"], 0.0)
    assert kicks.of_names("00" * 32, ["", "spiffe://corp/app"], 0.0)
    assert kicks.of_names("00" * 32, ["CN=Alice", "CN=alice,O=x"], 0.0) is None
    assert kicks.of_address("192.0.2.7", 0.0) is None


def test_a_kick_ends_at_its_time_and_no_other_one_with_it():
    kicks = KickList([kick("192.0.2.7", 10.0), kick("192.0.2.0/24", 20.0), kick("CN=a", 10.0)])
    assert kicks.of_address("192.0.2.7", 9.9).until_at == 10.0
    assert kicks.of_address("192.0.2.7", 10.0).until_at == 20.0
    assert kicks.of_address("192.0.2.7", 20.0) is None
    assert kicks.of_names("", ["CN=a"], 10.0) is None
    assert kicks.until_at == 20.0


def test_the_later_kick_of_a_client_replaces_the_earlier_one():
    kicks = KickList([kick("10.0.0.0/8", 10.0), kick("10.0.0.0/8", 5.0)])
    assert [each.until_at for each in kicks.kicks] == [5.0]
    assert kicks.of_address("10.0.0.1", 7.0) is None


def test_a_kick_says_who_why_and_how_long():
    assert kick("CN=a", 90.0, "stolen laptop").describe(30.0) == (
        "by root: stolen laptop; kept out for another 60 s"
    )
    assert kick("CN=a", 7200.0).describe(0.0) == "by root; kept out for another 120 min"
    assert kick("CN=a", 30.0).describe(30.0) == "by root"


@given(
    st.lists(
        st.one_of(
            st.ip_addresses(v=4).flatmap(lambda ip: st.integers(1, 32).map(lambda n: f"{ip}/{n}")),
            st.ip_addresses(v=6).flatmap(lambda ip: st.integers(1, 128).map(lambda n: f"{ip}/{n}")),
        ),
        max_size=8,
    ),
    st.ip_addresses(),
)
def test_networks_agree_with_the_standard_library(networks, host):
    exact = [ipaddress.ip_network(one, strict=False) for one in networks]
    # Mapped addresses are IPv4 addresses here; see the tables above.
    exact = [one for one in exact if one.version == 4 or not one.overlaps(_MAPPED)]
    if host.version == 6 and host in _MAPPED:
        return
    kicks = KickList([kick(str(one)) for one in exact])
    assert bool(kicks.of_address(str(host), 0.0)) == any(host in one for one in exact)


_MAPPED = ipaddress.ip_network("::ffff:0:0/96")
