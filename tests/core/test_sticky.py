"""The key of a client's address."""

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.sticky import identity_key, source_key


def test_an_ipv4_client_is_the_same_on_a_dual_stack_socket():
    key = source_key("192.0.2.7")
    assert key == bytes([192, 0, 2, 7])
    assert (
        source_key("::ffff:192.0.2.7")
        == source_key("::FFFF:192.0.2.7")
        == source_key("0:0:0:0:0:ffff:c000:207")
        == key
    )


@pytest.mark.parametrize(
    "spelling", ["2001:db8::1", "2001:DB8:0:0::1", "2001:0db8:0000:0000:0000:0000:0000:0001"]
)
def test_every_spelling_of_an_ipv6_address_has_one_key(spelling):
    assert source_key(spelling) == bytes.fromhex("20010db8000000000000000000000001")


def test_the_zone_of_an_address_does_not_count():
    assert source_key("fe80::1%eth0") == source_key("fe80::1%2") == source_key("fe80::1")


@settings(deadline=None)
@given(st.ip_addresses(v=4), st.ip_addresses(v=4))
def test_two_addresses_have_two_keys(one, other):
    assert (source_key(str(one)) == source_key(str(other))) == (one == other)


@settings(deadline=None)
@given(st.ip_addresses(v=6))
def test_an_ipv6_key_is_the_whole_address(address):
    assert source_key(str(address)) == (address.ipv4_mapped or address).packed


@settings(deadline=None)
@given(st.text(max_size=60))
def test_a_text_that_is_not_an_address_is_its_own_key(text):
    key = source_key(text)
    assert isinstance(key, bytes)
    try:
        ipaddress.ip_address(text)
    except ValueError:
        assert key == text.encode("utf-8", "surrogateescape") or len(key) in {4, 16}


def test_clients_of_one_network_have_one_key_by_prefix():
    assert (
        source_key("192.0.2.7", 24)
        == source_key("192.0.2.200", 24)
        == source_key("::ffff:192.0.2.9", 24)
        == bytes([192, 0, 2, 0])
    )
    assert source_key("192.0.3.7", 24) != source_key("192.0.2.7", 24)
    assert (
        source_key("2001:db8:1:2::7", prefix_v6=64)
        == source_key("2001:db8:1:2:ffff::1%eth0", 24, 64)
        == bytes.fromhex("20010db8000100020000000000000000")
    )
    assert source_key("0:0:0:0:0:ffff:c000:207", 24, 64) == bytes([192, 0, 2, 0])


@given(st.ip_addresses(), st.integers(0, 32), st.integers(0, 128))
def test_a_prefix_keeps_its_bits_and_clears_the_rest(address, v4, v6):
    key = source_key(str(address), v4, v6)
    bits = v4 if len(key) == 4 else v6
    assert (
        ipaddress.ip_network((key, bits)).network_address.packed == key
    )  # raises for a bit behind the prefix
    assert ipaddress.ip_address(source_key(str(address))) in ipaddress.ip_network((key, bits))


def test_an_identity_is_the_public_key_or_the_address():
    assert identity_key(b"\x01" * 32, "192.0.2.7") == b"\x01" * 32
    assert identity_key(b"", "192.0.2.7") == source_key("192.0.2.7")
    assert identity_key(b"", "192.0.2.7", 24, 64) == source_key("192.0.2.7", 24, 64)
