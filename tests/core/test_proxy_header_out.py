"""Headers that the relay builds, read by a receiver that shares no code with it."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as some

from relay.config.pool_model import PROXY_TLVS
from relay.core.proxy_header_out import (
    LONGEST,
    LONGEST_CN,
    OWN_V1,
    OWN_V2,
    Addresses,
    SendProxy,
    Tls,
    build_tlvs,
    build_v1,
    build_v2,
    common_tlvs,
    packed,
)
from tests.support.proxy_header import read_header

ALL = SendProxy(2, inside_tls=False, tlvs=frozenset(PROXY_TLVS), certificate=True)
HERE = Addresses("192.0.2.1", 1024, "198.51.100.2", 443)
TLS = Tls(
    "TLSv1.3", "TLS_AES_128_GCM_SHA256", "x25519", False, "alice",
    "EC256", "ecdsa-with-SHA256", "ecdsa_secp256r1_sha256",
)  # fmt: skip


def read(header):
    """The header, which must be all of the bytes."""
    at = 0

    def take(size):
        nonlocal at
        at += size
        assert at <= len(header)
        return header[at - size : at]

    found = read_header(take)
    assert at == len(header)
    return found


def v2(
    tls=TLS,
    send=ALL,
    sni="app.example.com",
    alpn="h2",
    session="12-1",
    addresses=HERE,
    certificate=b"",
):
    common = common_tlvs(send, sni, alpn, tls)
    return read(build_v2(addresses, build_tlvs(common, session.encode(), certificate)))


FAMILIES = [
    ("192.0.2.1", "198.51.100.2", "TCP4", "192.0.2.1", "198.51.100.2"),
    ("2001:db8::1", "2001:db8::2", "TCP6", "2001:db8::1", "2001:db8::2"),
    ("::ffff:192.0.2.1", "::ffff:198.51.100.2", "TCP4", "192.0.2.1", "198.51.100.2"),
    ("192.0.2.1", "2001:db8::2", "TCP6", "::ffff:192.0.2.1", "2001:db8::2"),
    ("2001:db8::1", "198.51.100.2", "TCP6", "2001:db8::1", "::ffff:198.51.100.2"),
    ("fe80::1%eth0", "fe80::2%eth0", "TCP6", "fe80::1", "fe80::2"),
]


@pytest.mark.parametrize(("source", "destination", "family", "first", "second"), FAMILIES)
@pytest.mark.parametrize("version", [1, 2])
def test_both_addresses_have_one_family(version, source, destination, family, first, second):
    """An IPv4 address beside an IPv6 one is mapped; an IPv6 scope is left out."""
    addresses = Addresses(source, 1, destination, 65_535)
    header = read(build_v1(addresses) if version == 1 else build_v2(addresses, b""))
    assert (header.command, header.family) == ("PROXY", family)
    assert ip_address(header.source[0]) == ip_address(first)
    assert ip_address(header.destination[0]) == ip_address(second)
    assert (header.source[1], header.destination[1]) == (1, 65_535)
    assert version == 2 or len(header.raw) <= 107, "the longest line of version 1"


def test_unknown_addresses_keep_the_parts():
    """A receiver skips the TLVs of a LOCAL header, so it is a PROXY header."""
    assert read(build_v1(None)).family == "UNKNOWN"
    header = v2(addresses=None)
    assert (header.command, header.family) == ("PROXY", "UNSPEC")
    assert header.ssl["cn"] == b"alice"


def test_a_connection_without_a_client_says_so():
    assert read(OWN_V1).family == "UNKNOWN"
    assert (read(OWN_V2).command, read(OWN_V2).family) == ("LOCAL", "UNSPEC")


def test_a_resumption_says_where_the_certificate_was_shown():
    assert (v2().client, v2(TLS._replace(resumed=True)).client) == (0x07, 0x05)


def test_parts_without_a_value_are_left_out():
    header = v2(TLS._replace(group="", sig_scheme=""), sni="", alpn="")
    assert set(header.tlvs) == {"unique_id", "ssl"}
    assert set(header.ssl) == {"version", "cn", "cipher", "sig_alg", "key_alg"}


def test_a_client_whose_tls_goes_on_has_no_ssl_part():
    assert set(v2(None).tlvs) == {"alpn", "authority", "unique_id"}


@pytest.mark.parametrize("name", PROXY_TLVS)
def test_each_part_can_be_chosen_alone(name):
    send = SendProxy(2, inside_tls=False, tlvs=frozenset((name,)), certificate=False)
    header = v2(send=send)
    if name.startswith("ssl"):
        assert set(header.tlvs) == {"ssl"}
        assert (header.client, header.verify) == (0x07, 0)
        assert [f"ssl_{inner}" for inner in header.ssl] == ([] if name == "ssl" else [name])
    else:
        assert set(header.tlvs) == {name}


def test_the_certificate_can_be_chosen_alone():
    send = SendProxy(2, inside_tls=False, tlvs=frozenset(), certificate=True)
    assert v2(TLS, send, certificate=b"der").ssl == {"certificate": b"der"}


EXPECTED = (
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\xac"
    b"\xc0\0\x02\x01\xc6\x33\x64\x02\x04\0\x01\xbb"
    b"\x01\0\x02h2"
    b"\x02\0\x0fapp.example.com"
    b"\x05\0\x0412-1"
    b"\x20\0\x7f\x07\0\0\0\0"
    b"\x21\0\x07TLSv1.3"
    b"\x23\0\x16TLS_AES_128_GCM_SHA256"
    b"\x24\0\x11ecdsa-with-SHA256"
    b"\x25\0\x05EC256"
    b"\x26\0\x06x25519"
    b"\x27\0\x16ecdsa_secp256r1_sha256"
    b"\x22\0\x05alice"
    b"\x28\0\x0ecertificate..."
)
"""A whole header, byte by byte: the receiver above could accept another order."""


def test_the_bytes_of_a_header_are_these():
    tlvs = build_tlvs(common_tlvs(ALL, "app.example.com", "h2", TLS), b"12-1", b"certificate...")
    assert build_v2(HERE, tlvs) == EXPECTED


CNS = [
    ("alice", True),
    ("Jörg Müller 株式会社", True),
    ("x" * LONGEST_CN, True),
    ("x" * (LONGEST_CN + 1), False),
    ("ü" * (LONGEST_CN // 2 + 1), False),
    ("alice\0.example.com", False),
    ("alice\nbob", False),
    ("alice\u202ebob", False),
    ("\ud800", False),
    ("", False),
]


@pytest.mark.parametrize(("cn", "sent"), CNS)
def test_a_name_that_could_be_misread_is_left_out(cn, sent):
    """A cut name, or one that a receiver may cut, would be another client's."""
    found = v2(TLS._replace(cn=cn)).ssl.get("cn")
    assert found == (cn.encode() if sent else None)


def test_the_longest_header_is_bounded():
    sni, session = "a" * 255, "s" * 300
    for size in (65_000, 65_400, 65_535, 102_400):
        tls, ipv6 = TLS._replace(cn="x" * LONGEST_CN), Addresses("::1", 1, "::2", 2)
        header = v2(tls, sni=sni, session=session, addresses=ipv6, certificate=bytes(size))
        assert len(header.raw) <= LONGEST
        assert len(header.tlvs["unique_id"]) == 128
        assert "certificate" not in header.ssl or size < 65_400
    assert len(v2(tls, sni=sni).raw) < 1_024


@given(some.ip_addresses().map(str))
def test_addresses_are_packed_as_ipaddress_does(host):
    mapped = getattr(ip_address(host), "ipv4_mapped", None)
    assert packed(host) == (mapped or ip_address(host)).packed


@given(some.text(), some.text(max_size=255), some.binary(max_size=70_000), some.booleans())
def test_any_certificate_makes_a_whole_header(cn, sni, certificate, resumed):
    tls = TLS._replace(cn=cn, resumed=resumed)
    v2(tls, sni=sni, certificate=certificate)
