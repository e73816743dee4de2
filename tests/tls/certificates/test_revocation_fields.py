"""What a certificate says for revocation lists, also if it is malformed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.tls.certificates.der import Extension, Fields
from relay.tls.certificates.extension_values import BASIC_CONSTRAINTS
from relay.tls.certificates.revocation_fields import (
    AUTHORITY_KEY_ID,
    DISTRIBUTION_POINTS,
    NO_FIELDS,
    RevocationFields,
    revocation_fields,
)
from tests.support.odd import tlv

KEY = b"\x01" * 20


def fields(extensions):
    return Fields(3, b"\x07", b"", b"issuer", (23, b""), (23, b""), b"subject", b"", extensions)


def read(**values):
    oids = {"key": AUTHORITY_KEY_ID, "points": DISTRIBUTION_POINTS, "basic": BASIC_CONSTRAINTS}
    return revocation_fields(
        fields(tuple(Extension(oids[name], False, value) for name, value in values.items()))
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (tlv(0x30, tlv(0x80, KEY)), KEY),
        (tlv(0x30, tlv(0x80, KEY), tlv(0xA1, b"name"), tlv(0x82, b"\x01")), KEY),
        (tlv(0x30, tlv(0xA1, b"name"), tlv(0x82, b"\x01")), b""),
        (tlv(0x30), b""),
        (tlv(0x31, tlv(0x80, KEY)), b""),
        (tlv(0x30, tlv(0x80, KEY))[:-1], b""),
        (b"", b""),
    ],
)
def test_the_key_of_the_issuer(value, expected):
    assert read(key=value).issuer_key_id == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (tlv(0x30, tlv(1, b"\xff")), True),
        (tlv(0x30, tlv(1, b"\xff"), tlv(2, b"\x00")), True),
        (tlv(0x30), False),
        (tlv(0x30, tlv(1, b"\x00")), False),
        (b"\x30", None),
    ],
)
def test_whether_it_is_a_ca(value, expected):
    assert read(basic=value).is_ca is expected


def test_a_plain_leaf_is_no_ca_and_names_no_list():
    assert read() == RevocationFields(b"subject", b"\x07", b"", b"", False)


def test_of_unreadable_extensions_nothing_is_known():
    found = revocation_fields(fields(None))
    assert found == RevocationFields(b"subject", b"\x07", b"", b"", None)
    assert NO_FIELDS.is_ca is False


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40))
def test_no_value_raises(key, points, basic):
    assert read(key=key, points=points, basic=basic).points == points
