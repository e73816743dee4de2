"""Every PROXY header is judged as the specification says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.crc32c import crc32c
from relay.core.hello import NEED_DATA
from relay.core.proxy_details import MOST_CHARACTERS, details_of
from relay.core.proxy_header import Header, MalformedHeader
from relay.core.proxy_protocol import MAX_HEADER_BYTES, parse_header
from tests.support.proxy_vectors import (
    IPV4,
    LOCAL,
    REFUSED,
    RELAYED,
    SIGNATURE,
    SOCKET,
    VECTORS,
    WAITS,
    tlv,
    v2,
)


def judged(parsed):
    """What becomes of a connection, in the words of the vectors."""
    if parsed is NEED_DATA:
        return WAITS
    if isinstance(parsed, MalformedHeader):
        return REFUSED
    if parsed.local:
        return LOCAL
    return RELAYED if parsed.source is not None else SOCKET


def named(vector):
    return vector.name


@pytest.mark.parametrize("vector", VECTORS, ids=named)
def test_a_header_is_judged_as_the_specification_says(vector):
    parsed = parse_header(vector.data)
    assert judged(parsed) == vector.expected, vector.says
    if vector.expected == RELAYED and "ports" not in vector.name:
        assert parsed.source == vector.source
    if isinstance(parsed, Header):
        assert parsed.size == len(vector.data)


@pytest.mark.parametrize("vector", VECTORS, ids=named)
def test_bytes_after_a_header_do_not_count(vector):
    if vector.expected != WAITS:
        more = parse_header(vector.data + b"\x16\x03\x01\x02\x00")
        assert judged(more) == vector.expected


@pytest.mark.parametrize("vector", VECTORS, ids=named)
def test_a_header_that_comes_byte_by_byte_is_judged_the_same(vector):
    """A part of a good header is never refused, nor taken for a whole one."""
    whole = parse_header(vector.data)
    for size in range(len(vector.data)):
        part = parse_header(vector.data[:size])
        if isinstance(whole, Header):
            assert part is NEED_DATA
        elif part is not NEED_DATA:
            assert isinstance(part, MalformedHeader)


def test_what_is_wrong_has_its_place():
    details = {
        b"PROXY TCP4 1.2.3.4\n": "byte 19 is b'\\n'",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 065\r\n": "destination port '065'",
        b"PROXY TCP4 1.2.3.4 5.6.7.8.9 1 2\r\n": "destination '5.6.7.8.9' is not a TCP4 address",
        v2(IPV4, version_command=0x31): "version 3 in byte 13",
        v2(IPV4 + b"\x02\x00\x09shorter"): "TLV of type 0x02 at byte 29 has 9 bytes",
        v2(b"", length=9_999): "9999 bytes after the fixed part",
    }
    for data, detail in details.items():
        assert detail in parse_header(data).detail


def test_an_ipv4_mapped_client_is_the_ipv4_client():
    mapped = bytes(10) + b"\xff\xff"
    payload = mapped + IPV4[:4] + mapped + IPV4[4:8] + IPV4[8:]
    assert parse_header(v2(payload, family_protocol=0x21)).source == ("192.0.2.7", 56324)
    line = b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.9 56324 443\r\n"
    assert parse_header(line).source == ("192.0.2.7", 56324)


def test_the_checksum_is_castagnolis():
    assert crc32c(b"123456789") == 0xE3069283


starts = st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY UNKNOWN", SIGNATURE])


@given(starts, st.binary(max_size=300))
def test_no_bytes_make_the_parser_fail(start, rest):
    parsed = parse_header(start + rest)
    if isinstance(parsed, Header):
        assert 0 < parsed.size <= len(start + rest)
        details_of(parsed)
    elif parsed is NEED_DATA:
        assert len(start + rest) < MAX_HEADER_BYTES


@given(
    st.sampled_from([0x20, 0x21]),
    st.sampled_from([0x00, 0x11, 0x21, 0x31]),
    st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=80)), max_size=6),
    st.integers(-4, 4),
)
def test_no_tlvs_make_the_parser_read_beyond(version_command, family_protocol, tlvs, off):
    payload = IPV4 + b"".join(tlv(kind, value) for kind, value in tlvs)
    data = v2(
        payload,
        version_command=version_command,
        family_protocol=family_protocol,
        length=max(0, len(payload) + off),
    )
    parsed = parse_header(data)
    if isinstance(parsed, Header):
        assert parsed.size == len(data) + off or off < 0
        assert parse_header(data[: parsed.size]) == parsed
        for _, value in details_of(parsed):
            assert value.isascii()
            assert value.isprintable() or not value
            assert len(value) <= MOST_CHARACTERS


def test_the_log_has_what_vendors_say():
    payload = IPV4 + b"".join(
        [
            tlv(0x02, b"app.example.com"),
            tlv(0x05, b"id-\xff"),
            tlv(0x20, b"\x01\0\0\0\0" + tlv(0x21, b"TLSv1.3") + tlv(0x22, b"alice")),
            tlv(0xE0, (1 << 40).to_bytes(8, "big")),
            tlv(0xE1, b"\x01vpc-1"),
            tlv(0xE1, b"\x02ep-2"),
            tlv(0xE1, b"\x03epsrv-3"),
            tlv(0xEA, b"\x01vpce-08d2bf15fac5001c9"),
            tlv(0xEE, b"\x01" + (4_660).to_bytes(4, "little")),
        ]
    )
    assert dict(details_of(parse_header(v2(payload)))) == {
        "destination": "198.51.100.9:443",
        "authority": "app.example.com",
        "unique_id": "69642dff",
        "ssl_version": "TLSv1.3",
        "ssl_cn": "alice",
        "gcp_psc_connection_id": "1099511627776",
        "alibaba_vpc_id": "vpc-1",
        "alibaba_endpoint_id": "ep-2",
        "alibaba_service_id": "epsrv-3",
        "aws_vpce_id": "vpce-08d2bf15fac5001c9",
        "azure_link_id": "4660",
    }


def test_a_vendors_value_cannot_harm_the_log():
    payload = IPV4 + tlv(0xEA, b'\x01"\n\x1b[0m\xff' + b"x" * 1_000) + tlv(0xEE, b"\x01")
    details = dict(details_of(parse_header(v2(payload))))
    assert details["aws_vpce_id"].startswith('"??[0m?xxx')
    assert len(details["aws_vpce_id"]) <= MOST_CHARACTERS
    assert "azure_link_id" not in details
