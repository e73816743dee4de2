"""The ClientHello parser, on hellos of real clients and on bytes no client sends."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.hello import (
    MAX_EMPTY_RECORDS,
    MAX_HELLO_BYTES,
    MAX_RECORD_BYTES,
    MAX_RECORDS,
    NEED_DATA,
    Hello,
    Malformed,
    parse_hello,
)
from relay.core.hello_extensions import parse_name
from relay.errors import Reason
from tests.support.hellos import (
    HELLOS,
    alpn,
    block,
    extension,
    handshake,
    hello,
    records,
    server_name,
    versions,
)

PLAIN = HELLOS["openssl4_post_quantum"]

EXPECTED = {
    "curl_http2": Hello("app.example.com", (b"h2", b"http/1.1")),
    "openssl3_s_client": Hello("app.example.com", ()),
    "openssl3_s_client_tls12": Hello("app.example.com", (b"h2",)),
    "openssl4_post_quantum": Hello("app.example.com", ()),
    "openssl4_post_quantum_alpn": Hello("app.example.com", (b"h2", b"http/1.1")),
    "openssl4_tls12_only": Hello("app.example.com", ()),
    "openssl4_tls13_only": Hello("app.example.com", ()),
    "openssl4_without_sni": Hello("", ()),
    "python_ssl": Hello("app.example.com", ()),
    "python_ssl_alpn": Hello("app.example.com", (b"postgresql",)),
    "python_ssl_tls12_without_sni": Hello("", ()),
}


def malformed(data):
    result = parse_hello(data)
    assert isinstance(result, Malformed), result
    assert result.reason is Reason.MALFORMED_HELLO
    return result.detail


def test_every_captured_hello_has_an_expectation():
    assert HELLOS.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_captured_hello_says_what_its_client_meant(name):
    assert parse_hello(HELLOS[name]) == EXPECTED[name]
    assert parse_hello(memoryview(HELLOS[name])) == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_prefix_needs_data_and_bytes_after_are_ignored(name):
    data = HELLOS[name]
    for size in range(len(data)):
        assert parse_hello(data[:size]) is NEED_DATA, size
    for more in (b"\x16", b"\x14\x03\x03\x00\x01\x01", b"GET / HTTP/1.1\r\n", bytes(3000)):
        assert parse_hello(data + more) == EXPECTED[name]


@pytest.mark.parametrize(
    "name", ["curl_http2", "openssl4_post_quantum_alpn", "python_ssl_tls12_without_sni"]
)
@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 400), max_size=20))
def test_a_hello_cut_into_records_anywhere_is_the_same(name, sizes):
    data = records(HELLOS[name][5:], sizes)
    assert parse_hello(data) == EXPECTED[name]
    view = memoryview(data)
    for size in range(0, len(data), 7):
        assert parse_hello(view[:size]) is NEED_DATA, size
    assert parse_hello(view[: len(data) - 1]) is NEED_DATA


@pytest.mark.parametrize("name", EXPECTED)
def test_a_hello_of_one_byte_records_is_the_same_hello(name):
    assert parse_hello(records(HELLOS[name][5:], [1] * MAX_RECORDS)) == EXPECTED[name]


def test_a_hello_of_too_many_records_is_refused_early():
    long = hello(server_name(b"a.example.com"), extension(21, bytes(MAX_RECORDS)))[5:]
    assert parse_hello(records(long, [1] * (MAX_RECORDS - 1))) == Hello("a.example.com", ())
    assert f"more than {MAX_RECORDS} records" in malformed(records(long, [1] * (MAX_RECORDS + 1)))


def test_a_few_empty_records_are_skipped_as_by_openssl():
    empty = b"\x16\x03\x01\x00\x00"
    message = PLAIN[5:]
    for at in (0, 1, 4, 100):
        before, after = records(message[:at]), records(message[at:])
        assert (
            parse_hello(before + empty * MAX_EMPTY_RECORDS + after)
            == EXPECTED["openssl4_post_quantum"]
        )
        assert "empty records" in malformed(before + empty * (MAX_EMPTY_RECORDS + 1) + after)


@pytest.mark.parametrize("header", [1, 2, 3, 4, 5])
def test_a_record_may_end_inside_the_handshake_header(header):
    assert parse_hello(records(PLAIN[5:], [header])) == EXPECTED["openssl4_post_quantum"]


@settings(deadline=None)
@given(data=st.binary(max_size=200))
def test_random_bytes_never_raise(data):
    for start in (b"", b"\x16", b"\x16\x03\x01\x00\x40", PLAIN[:9], PLAIN[:60]):
        assert (
            isinstance(parse_hello(start + data), Hello | Malformed)
            or parse_hello(start + data) is NEED_DATA
        )


@settings(deadline=None)
@given(
    name=st.sampled_from(sorted(HELLOS)),
    at=st.integers(0, 1600),
    value=st.integers(0, 255),
    data=st.data(),
)
def test_one_changed_byte_never_raises_however_it_arrives(name, at, value, data):
    broken = bytearray(HELLOS[name])
    broken[at % len(broken)] = value
    whole = parse_hello(bytes(broken))
    assert parse_hello(memoryview(broken)) == whole
    prefix = parse_hello(bytes(broken[: data.draw(st.integers(0, len(broken)))]))
    # A prefix may be malformed with another detail, but then the whole is malformed
    # too. A prefix is a hello only if the whole is the same one.
    if isinstance(prefix, Hello):
        assert whole == prefix
    if isinstance(prefix, Malformed):
        assert isinstance(whole, Malformed)
        assert whole.reason is prefix.reason


@settings(deadline=None)
@given(st.lists(st.integers(0, 70), max_size=6), st.binary(max_size=40))
def test_extensions_of_any_content_never_raise(kinds, body):
    assert isinstance(
        parse_hello(hello(*(extension(kind, body) for kind in kinds), version=0x0303)),
        Hello | Malformed,
    )


@pytest.mark.parametrize(
    "method",
    [
        b"GET / HTTP/1.1\r\n",
        b"POST /",
        b"HEAD /",
        b"PUT /x",
        b"CONNECT a:1",
        b"OPTIONS *",
        b"PRI * HTTP/2.0",
        b"DELETE /",
        b"PATCH /",
        b"TRACE /",
        b"GET",
        b"P",
    ],
)
def test_plain_http_is_called_plain_http(method):
    result = parse_hello(method)
    assert isinstance(result, Malformed)
    assert result.reason is Reason.PLAIN_HTTP


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00",
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\x16\x02\x00\x00\x10",
        b"GARBAGE",
        b"PROXY TCP4 1.2.3.4",
        b"\x80\x2e\x01\x00\x02",
        b"\xff" * 20,
    ],
)
def test_other_protocols_are_called_not_tls(data):
    result = parse_hello(data)
    assert isinstance(result, Malformed)
    assert result.reason is Reason.NOT_TLS
    assert result.detail
    assert "\n" not in result.detail


def test_an_sslv2_hello_is_named():
    result = parse_hello(b"\x80\x2e\x01\x03\x01\x00\x15")
    assert result == Malformed(Reason.NOT_TLS, "an SSLv2 hello")


def test_a_too_long_hello_is_refused_from_its_length_alone():
    start = b"\x16\x03\x01\x40\x00\x01"
    assert MAX_HELLO_BYTES >= 64 * 1024
    assert parse_hello(start + MAX_HELLO_BYTES.to_bytes(3, "big")) is NEED_DATA
    assert f"a hello of {MAX_HELLO_BYTES + 1} bytes" in malformed(
        start + (MAX_HELLO_BYTES + 1).to_bytes(3, "big")
    )
    assert "a hello of 90000 bytes" in malformed(start + (90_000).to_bytes(3, "big") + bytes(500))


def test_the_longest_hello_is_read_over_many_records():
    extensions = block(server_name(b"a.example.com") + extension(21, bytes(65_000)))
    before = b"\x03\x03" + bytes(32) + b"\0"
    suites = block(b"\x13\x01" * ((MAX_HELLO_BYTES - len(before) - 2 - 2 - len(extensions)) // 2))
    body = (
        before
        + suites
        + block(bytes(MAX_HELLO_BYTES - len(before) - len(suites) - 1 - len(extensions)), 1)
        + extensions
    )
    message = handshake(body)
    assert len(message) == 4 + MAX_HELLO_BYTES
    for sizes in ([16_384] * 4, [40] * 1_700):
        assert parse_hello(records(message, sizes)) == Hello("a.example.com", ())


@pytest.mark.parametrize("length", [MAX_RECORD_BYTES + 1, 16_640, 0xFFFF])
def test_a_too_long_record_is_refused_from_its_header_alone(length):
    assert f"a record of {length} bytes" in malformed(b"\x16\x03\x01" + length.to_bytes(2, "big"))
    assert f"a record of {length} bytes" in malformed(
        records(PLAIN[5:100]) + b"\x16\x03\x01" + length.to_bytes(2, "big")
    )


def test_another_record_type_in_the_middle_is_refused():
    start = records(PLAIN[5:100])
    assert "a record of type 23" in malformed(start + b"\x17")
    assert "a record of version 2" in malformed(start + b"\x16\x02")


def test_another_handshake_message_is_refused():
    assert "type 2" in malformed(records(handshake(bytes(40), kind=2)))
    assert "type 2" in malformed(b"\x16\x03\x01\x00\x40\x02")


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (b"App.Example.COM", "app.example.com"),
        (b"a_b.example.com.", "a_b.example.com"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"localhost", "localhost"),
    ],
)
def test_a_name_becomes_lower_case_without_trailing_dot(sent, read):
    assert parse_hello(hello(server_name(sent))) == Hello(read, ())
    assert parse_name(sent) == read


ODD = [
    b".",
    b"..",
    b".example.com",
    b"a..b",
    b"a.b..",
    b"a b",
    b"a/b",
    b"[::1]",
    b"::1",
    b"a.b:443",
    b"b\xc3\xbccher.example",
    b"\xff.example",
    b"*.example.com",
    b"a\n",
    b"\x1b[2J",
    b"a\\.b",
    b"A.B,",
    b"(" * 255,
]


@pytest.mark.parametrize("sent", ODD)
def test_another_name_is_one_line_that_matches_no_pattern(sent):
    read = parse_hello(hello(server_name(sent)))
    assert read == Hello(parse_name(sent), ())
    assert read.sni.isprintable()
    assert len(read.sni) <= 128
    labels = read.sni.split(".")
    assert not all(
        label and set(label) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_") for label in labels
    )


def test_an_empty_name_is_none():
    assert parse_hello(hello(server_name(b""))) == Hello("", ())


@pytest.mark.parametrize(
    "sent", [b"a\0.example.com", b"a.example.com\0", b"\0", b"a" * 256, b"a." * 150]
)
def test_a_name_that_openssl_refuses_is_refused_alike(sent):
    result = parse_hello(hello(server_name(sent)))
    assert "not one host name" in malformed(hello(server_name(sent)))
    assert result.alert == 112


def test_several_names_or_another_kind_of_name_are_refused():
    assert "not one host name" in malformed(hello(server_name(b"a.example.com", b"b.example.com")))
    assert "not one host name" in malformed(hello(server_name(b"a.example.com", kind=1)))
    assert "not one host name" in malformed(hello(extension(0, b"")))
    assert "not one host name" in malformed(
        hello(extension(0, block(b"\x00" + block(b"a.example.com") + b"x")))
    )


@pytest.mark.parametrize("one", [server_name(b"a.example.com"), alpn(b"h2"), versions(0x0304)])
def test_an_extension_that_is_read_may_not_come_twice(one):
    assert "two extensions" in malformed(hello(one, one))
    assert isinstance(parse_hello(hello(one, extension(21, b""))), Hello)


def test_alpn_names_are_kept_in_order_and_bad_lists_refused():
    assert parse_hello(hello(alpn(b"h2", b"\xff\x00", b"http/1.1"))) == Hello(
        "", (b"h2", b"\xff\x00", b"http/1.1")
    )
    for body in (
        b"",
        block(b""),
        block(b"\x00"),
        block(b"\x03h2"),
        block(b"\x02h2\x00"),
        block(b"\x02h2") + b"x",
    ):
        assert "ALPN" in malformed(hello(extension(16, body)))


@pytest.mark.parametrize(
    "offer",
    [
        (0x0304, 0x0303),
        (0x0303, 0x0304),
        (0x7A7A, 0x0304, 0x0303),
        (0x7F1C, 0x0303),
        (0x0302, 0x0301),
        (0xFAFA,),
    ],
)
def test_any_order_of_versions_and_reserved_values_are_accepted(offer):
    assert parse_hello(hello(versions(*offer))) == Hello("", ())


def test_bad_lists_of_versions_are_refused():
    for body in (b"", b"\x00", b"\x01\x03", b"\x02\x03\x04\x00", b"\x04\x03\x04"):
        assert "supported_versions" in malformed(hello(extension(43, body)))


def test_the_old_version_field_may_be_newer_but_not_older():
    assert parse_hello(hello(version=0x0301)) == Hello("", ())
    for newer in (0x0304, 0x0400, 0x7F1C, 0xFFFF):  # RFC 5246, E.1
        assert parse_hello(hello(version=newer)) == Hello("", ())
        assert parse_hello(hello(versions(0x0304), version=newer)) == Hello("", ())
    assert "version 0x0200" in malformed(hello(version=0x0200))
    assert "version 0x0000" in malformed(hello(version=0))


def test_lengths_inside_the_hello_must_add_up():
    good = hello(server_name(b"a.example.com"), session=bytes(32))
    assert isinstance(parse_hello(good), Hello)
    assert "session id of 33" in malformed(hello(session=bytes(33)))
    body = good[9:]
    assert "extensions do not end" in malformed(records(handshake(body + b"x")))
    assert "extensions do not end" in malformed(records(handshake(body[:-1])))
    assert "before its extensions" in malformed(records(handshake(body[:20])))
    assert "last extension" in malformed(hello(server_name(b"a.example.com"), b"\x00\x15\x00\x09"))
    assert "last extension" in malformed(hello(server_name(b"a.example.com"), b"\x00\x15"))
