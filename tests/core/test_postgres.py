"""How a PostgreSQL client asks for TLS, and what it is answered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.hello import NEED_DATA
from relay.core.postgres import (
    SSL_REQUEST,
    Request,
    describe_error,
    error_response,
    parse_request,
)

REQUESTS = [
    ("0000000804d2162f", Request.TLS),
    ("0000000804d21630", Request.GSSAPI),
    ("0000001004d2162e0000000100000002", Request.CANCEL),
    ("0000010c04d2162e" + "00" * 260, Request.CANCEL),
    ("000000150003000075736572", Request.START),
    ("0000001500030002", Request.START),
    ("0000271000030000", Request.START),
    ("0000001500020000", Request.START),
    ("0000000800030000", None),
    ("0000271100030000", None),
    ("0000000704d2162f", None),
    ("0000000804d21631", None),
    ("0000001504d2162f", None),
    ("1603010200010001", None),
    ("00000000000000", None),
    ("", None),
]


@pytest.mark.parametrize(("data", "expected"), REQUESTS)
def test_every_request_is_known_by_its_first_8_bytes(data, expected):
    start = bytes.fromhex(data)
    assert parse_request(start) is expected
    if expected is not None:
        assert {parse_request(start[:size]) for size in range(1, 8)} == {NEED_DATA}


@given(st.binary(max_size=20))
def test_no_bytes_are_an_error(data):
    assert parse_request(data) in {None, NEED_DATA, *Request}
    assert describe_error(data).isprintable()


def test_an_error_is_what_clients_read():
    message = error_response("TLS is required")
    assert message[:5] == b"E\0\0\0" + bytes((len(message) - 1,))
    assert message[5:] == b"SFATAL\0VFATAL\0C28000\0MTLS is required\0\0"
    assert describe_error(message[1:]) == "TLS is required"
    assert describe_error(message[1:30]) != ""


def test_the_request_is_the_protocols():
    assert (int.from_bytes(SSL_REQUEST[:4]), int.from_bytes(SSL_REQUEST[4:])) == (8, 80877103)
