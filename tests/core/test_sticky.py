"""The key of a client's address."""

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.sticky import source_key


def test_an_ipv4_client_is_the_same_on_a_dual_stack_socket():
    key = source_key("192.0.2.7")
    assert key == bytes([192, 0, 2, 7])
    assert source_key("::ffff:192.0.2.7") == source_key("::FFFF:192.0.2.7") == source_key("0:0:0:0:0:ffff:c000:207") == key


@pytest.mark.parametrize("spelling", ["2001:db8::1", "2001:DB8:0:0::1", "2001:0db8:0000:0000:0000:0000:0000:0001"])
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
def test_what_is_no_address_is_its_own_key_and_never_raises(text):
    key = source_key(text)
    assert isinstance(key, bytes)
    try:
        ipaddress.ip_address(text)
    except ValueError:
        assert key == text.encode("utf-8", "surrogateescape") or len(key) in {4, 16}
