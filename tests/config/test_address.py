"""Addresses and host names."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.address import host_name_fault, is_ip, parse_address
from relay.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8443", "127.0.0.1", 8443),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("[::]:443", "::", 443),
        ("[fe80::1%eth0]:443", "fe80::1%eth0", 443),
        ("app.example.com:65535", "app.example.com", 65535),
        ("db_1:5432", "db_1", 5432),
        ("xn--bcher-kva.example:1", "xn--bcher-kva.example", 1),
    ],
)
def test_an_address_is_host_and_port(text, host, port):
    assert parse_address(text) == (host, port)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 'has no port; write host:port, for example "192.0.2.1:443"'),
        ("192.0.2.1", 'has no port; write host:port, for example "192.0.2.1:443"'),
        ("::1", 'has no port; write host:port, for example "[::1]:443"'),
        ("[::1]", "is not a number from 0 to 65535"),
        ("fe80::1:443", "has no port"),
        ("a:b:443", "in brackets: [2001:db8::1]:443"),
        (
            ":443",
            'for all addresses of this machine write "0.0.0.0:443" and "[::]:443"',
        ),
        ("*:443", "has no host"),
        ("host:65536", "is not a number from 0 to 65535"),
        ("host:+1", "is not a number"),
        ("host:1_0", "is not a number"),
        ("host:\u0661", "is not a number"),
        ("host:-1", "is not a number"),
        ("host:", "is not a number"),
        ("host:https", "is not a number"),
        ("[127.0.0.1]:1", "is not an IPv6 address"),
        ("[::ffff:192.0.2.1]:443", 'is an IPv4 address written as IPv6; write "192.0.2.1:443"'),
        ("[::1%a b]:443", "is not an IPv6 address"),
        ("300.1.1.1:443", "ends in a number but is not an IPv4 address"),
        ("10.1:443", "ends in a number"),
        ("0x7f000001:443", "ends in a number"),
        ("127.0.0.01:443", "ends in a number"),
        ("bücher.example:443", "xn--"),
        ("a..b:443", 'has the label ""'),
        ("-a.example:443", 'has the label "-a"'),
        ("a b:443", 'has the label "a b"'),
        ("a.example.:443", "ends in a dot"),
        ("a" * 64 + ":443", "1 to 63"),
        (".".join(["a" * 50] * 6) + ":443", "305 characters"),
        (
            "https://a.example:443",
            "is a URL, and an address has no scheme or path; write host:port",
        ),
        ("http://a.example/x", 'there is no plain HTTP or TCP; write host:port, for example "a.'),
        ("tcp:a.example:443", "more than a host and a port"),
        ("SRV:_https._tcp.a.example", 'write it in lower case: "srv:"'),
    ],
)
def test_an_invalid_address_says_what_to_write(text, words):
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    (problem,) = caught.value.problems
    assert problem.where == text
    assert words in f"{problem.what}; {problem.remedy}"


def test_a_backend_needs_a_port_of_its_own():
    with pytest.raises(ConfigError, match="from 1 to 65535"):
        parse_address("host:0", min_port=1)


@given(st.ip_addresses(), st.integers(0, 65535))
def test_every_ip_address_comes_back_unless_it_is_mapped_ipv4(address, port):
    text = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        with pytest.raises(ConfigError, match="written as IPv6"):
            parse_address(text)
    else:
        assert parse_address(text) == (str(address), port)


@given(
    st.text(max_size=300) | st.from_regex(r"\[?[0-9a-f:.%*]{0,20}\]?:[0-9]{0,6}", fullmatch=True)
)
def test_any_text_is_an_address_or_one_line_of_refusal(text):
    try:
        host, port = parse_address(text)
    except ConfigError as error:
        (problem,) = error.problems
        assert problem.what.replace("…", "").isascii()  # a long text is cut
        assert problem.what.isprintable()
        assert problem.remedy.isprintable()
    else:
        assert 0 <= port <= 65535
        assert is_ip(host) or not host_name_fault(host)
