"""The cookie in a connection's first request head, however the bytes are cut."""

import timeit
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.hello import NEED_DATA
from relay.core.sniff import (
    HTTP2,
    MAX_HEAD_BYTES,
    MAX_VALUES,
    NOT_HTTP,
    TOO_LONG,
    Sniffer,
    SniffResult,
)
from relay.core.sticky_names import StickyNames

BROWSER = (
    b"GET /app/index.html?x=1 HTTP/1.1\r\nHost: app.example.com\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,"
    b"image/avif,image/webp,*/*;q=0.8\r\n"
    b"Accept-Language: en-US,en;q=0.5\r\n"
    b"Accept-Encoding: gzip, deflate, br\r\nConnection: keep-alive\r\n"
    b"Cookie: _ga=GA1.2.3.4; theme=dark; JSESSIONID=0123456789ABCDEF.worker2; other=1\r\n"
    b"Upgrade-Insecure-Requests: 1\r\nSec-Fetch-Dest: document\r\n\r\n"
)


def sniff(data, name="JSESSIONID", in_url=""):
    return Sniffer(StickyNames(name, in_url)).feed(data)


def bytewise(data, name="JSESSIONID"):
    sniffer = Sniffer(StickyNames(name))
    for i in range(len(data)):
        sniffer.feed(data[i : i + 1])
    return sniffer.result or NEED_DATA


def values(*fields, target=b"/", in_url=""):
    found = sniff(
        b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n"
        % (target, b"".join(field + b"\r\n" for field in fields)),
        in_url=in_url,
    )
    assert found.http
    return list(found.values)


def test_a_browsers_head_gives_the_cookies_value():
    found = sniff(BROWSER)
    assert found == SniffResult(http=True, values=(b"0123456789ABCDEF.worker2",))
    assert sniff(BROWSER, "PHPSESSID").values == ()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([b"Cookie: JSESSIONID=abc.worker2"], [b"abc.worker2"]),
        ([b"cookie:JSESSIONID=abc.worker2"], [b"abc.worker2"]),
        ([b"COOKIE:   JSESSIONID = abc.worker2  "], [b"abc.worker2"]),
        ([b'cOOkie: $Version=1; JSESSIONID="abc.worker2"; $Path=/'], [b"abc.worker2"]),
        ([b"Cookie: a=b;JSESSIONID=abc.worker2;c=d"], [b"abc.worker2"]),
        ([b"Cookie: JSESSIONID=x.w1; JSESSIONID=y.w2"], [b"x.w1", b"y.w2"]),
        ([b"Cookie: JSESSIONID=x.w1, JSESSIONID=y.w2"], [b"x.w1", b"y.w2"]),
        ([b"Cookie: JSESSIONID=x.w1", b"X: y", b"Cookie: JSESSIONID=y.w2"], [b"x.w1", b"y.w2"]),
        ([b"Cookie: a=b;\r\n JSESSIONID=x.w1"], [b"x.w1"]),
        ([b"Cookie:\r\n\tJSESSIONID=x.w1;\r\n  JSESSIONID=y.w2"], [b"x.w1", b"y.w2"]),
        ([b"Cookie: JSESSIONID=a=b.w1"], [b"a=b.w1"]),
        ([b"Cookie: JSESSIONID="], []),
        ([b'Cookie: JSESSIONID=""'], []),
        ([b"Cookie: JSESSIONID"], []),
        ([b"Cookie: XJSESSIONID=x.w1; JSESSIONIDX=x.w1; jsessionid=x.w1; other=JSESSIONID"], []),
        (
            [
                b"X-Cookie: JSESSIONID=x.w1",
                b"X: Cookie: JSESSIONID=x.w1",
                b"X: y\r\n Cookie: JSESSIONID=x.w1",
            ],
            [],
        ),
        ([b"Cookie: JSESSIONID=\xff\x00.w1"], [b"\xff\x00.w1"]),
        ([b"Cookie: a JSESSIONID=x.w1"], [b"x.w1"]),
        ([b"Cookie: a=b JSESSIONID=x.w1"], [b"x.w1"]),
        ([b"Cookie: a=JSESSIONID=x.w1; (JSESSIONID=x.w1"], []),
    ],
)
def test_a_cookie_is_found_in_every_valid_spelling_only(fields, expected):
    assert values(*fields) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/app;jsessionid=abc.worker2", [b"abc.worker2"]),
        (b"/app;JSESSIONID=abc.worker2?x=1", [b"abc.worker2"]),
        (b"/app;v=1;jsessionid=abc.worker2;w=2/page", [b"abc.worker2"]),
        (b"/app;jsessionid=abc.worker2/page", [b"abc.worker2"]),
        (b"/app?x=1&jsessionid=abc.worker2&y", [b"abc.worker2"]),
        (b"/app?jsessionid=abc.worker2#top", [b"abc.worker2"]),
        (b"https://app.example.com/app;jsessionid=abc.worker2", [b"abc.worker2"]),
        (b"/app;jsessionid=", []),
        (b"/jsessionid=abc.worker2", []),
        (b"/app;xjsessionid=abc.worker2", []),
        (b"/app;jsessionid", []),
    ],
)
def test_the_path_form_is_found_in_the_url(target, expected):
    assert values(target=target) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/app;JSESSIONID=x.w1?JSESSIONID=y.w2", [b"x.w1", b"y.w2"]),
        (b"/app;jsessionid=x.w1?JSESSIONID=y.w2", [b"y.w2", b"x.w1"]),
        (b"/app;JSESSIONID=a/b.w1", [b"a", b"a/b.w1"]),
        (b"/app;JSESSIONID=a;b.w1", [b"a", b"a;b.w1"]),
        (b"/app?JSESSIONID=a/b.w1", [b"a/b.w1"]),
        (b"/app?XJSESSIONID=x.w1", [b"x.w1"]),
        (b"/app?Xjsessionid=x.w1", []),
        (b"/app;%4ASESSIONID=a%2ew1", [b"a.w1"]),
        (b"/app;JSESSIONID=a%3Fb", [b"a%3Fb"]),
        (b"/app;JSESSIONID=%", [b"%"]),
        (b"/app?%4ASESSIONID=a.w1", []),
        (b"/app?JSESSIONID=&JSESSIONID=a.w1", [b"a.w1"]),
        (b"JSESSIONID=a.w1", [b"a.w1"]),
    ],
)
def test_the_url_is_read_as_httpd_reads_it(target, expected):
    """The exact name counts wherever it stands, and comes before any other spelling."""
    assert values(target=target) == expected


def test_the_url_may_have_a_name_of_its_own():
    cookie = b"Cookie: JSESSIONID=x.w1; sid=y.w2"
    target = b"/?JSESSIONID=z.w3&sid=u.w4"
    assert values(cookie, target=target, in_url="sid") == [b"u.w4", b"x.w1"]
    assert values(target=b"/;SID=u.w4", in_url="sid") == [b"u.w4"]


def test_the_url_comes_before_the_cookies_as_in_httpd():
    assert values(b"Cookie: JSESSIONID=x.w1", target=b"/;jsessionid=y.w2") == [b"y.w2", b"x.w1"]


def test_the_end_of_the_request_line_is_no_value():
    assert (
        sniff(b"GET /;a1= HTTP/1.1\n\n", "a1")
        == sniff(b"GET /;a HTTP/1.1\n\n", "1")
        == sniff(b"GET / HTTP/1.1\n\n", "1")
        == SniffResult(http=True)
    )


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\nHost: a\n\r\n",
        b"\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"VERSION-CONTROL / HTTP/1.1\r\nBad Header: 1\r\nX : 2\r\n\r\n",
        b"M-SEARCH * HTTP/1.1\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n\x00\x01",
        (
            b"GET /\xff\xfe HTTP/1.1\r\n\r\n"
            b"GET /;jsessionid=next.w1 HTTP/1.1\r\nCookie: JSESSIONID=next.w1\r\n\r\n"
        ),
    ],
)
def test_lenient_heads_are_http_and_the_body_is_not_read(head):
    assert sniff(head) == bytewise(head) == SniffResult(http=True)


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", HTTP2),
        (b"\x16\x03\x01", NOT_HTTP),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", NOT_HTTP),
        (b"SSH-2", NOT_HTTP),
        (b"*1\r", NOT_HTTP),
        (b"PING\r", NOT_HTTP),
        (b"EHLO me\r\n", NOT_HTTP),
        (b"GET /\r\n", NOT_HTTP),
        (b"GET / HTTP/2.0\r\n", NOT_HTTP),
        (b"OPTIONS * RTSP/1.0\r\n", NOT_HTTP),
        (b"get / HTTP/1.1\r\n", NOT_HTTP),
        (b" GET / HTTP/1.1\r\n", NOT_HTTP),
        (b"A" * 33, NOT_HTTP),
        (b"\r\n" * 9, NOT_HTTP),
    ],
)
def test_bytes_that_are_not_http_1_are_known_at_once(data, detail):
    found = sniff(data)
    assert found == bytewise(data) == SniffResult(http=False, detail=detail)
    assert found.values == ()


def test_a_head_may_have_64_kib_and_no_byte_more():
    start, end = b"GET / HTTP/1.1\r\nCookie: JSESSIONID=x.w1\r\nX: ", b"\r\n\r\n"
    fits = start + b"x" * (MAX_HEAD_BYTES - len(start) - len(end)) + end
    assert len(fits) == MAX_HEAD_BYTES
    assert sniff(fits) == sniff(fits + b"body") == SniffResult(http=True, values=(b"x.w1",))
    longer = fits.replace(b"X: ", b"XX: ")
    sniffer = Sniffer(StickyNames("JSESSIONID"))
    assert sniffer.feed(longer[: MAX_HEAD_BYTES - 1]) is NEED_DATA
    assert (
        sniffer.feed(longer[MAX_HEAD_BYTES - 1 :])
        == sniff(longer)
        == sniff(b"GET /" + b"a" * MAX_HEAD_BYTES)
        == SniffResult(http=False, detail=TOO_LONG)
    )


def test_a_result_does_not_change_later():
    sniffer = Sniffer(StickyNames("JSESSIONID"))
    first = sniffer.feed(BROWSER)
    assert sniffer.feed(b"GET / HTTP/1.1\r\n\r\n") is first
    assert sniffer.result is first


def test_every_kind_of_bytes_is_read():
    assert sniff(bytearray(BROWSER)) == sniff(memoryview(BROWSER)) == sniff(BROWSER)
    assert sniff(bytearray(b"\r\n" + BROWSER)) == sniff(BROWSER)


def test_a_cookie_without_a_name_cannot_be_looked_for():
    with pytest.raises(ValueError, match="set the pool's cookie"):
        StickyNames("")


def test_a_browsers_head_is_whole_at_its_last_byte_only():
    for size in range(len(BROWSER)):
        assert sniff(BROWSER[:size]) is NEED_DATA
    assert bytewise(BROWSER) == sniff(BROWSER)


LINES = st.sampled_from(
    [
        b"Cookie: JSESSIONID=x.w1",
        b"cookie: a=b; JSESSIONID=y.w2",
        b" JSESSIONID=z.w3",
        b"\t;",
        b"Host: a",
        b"",
        b"\r",
        b"GET / HTTP/1.1",
        b"POST /;jsessionid=u.w4 HTTP/1.0",
        b"PRI * HTTP/2.0",
    ]
)
TEXTS = st.lists(st.tuples(LINES, st.sampled_from([b"\r\n", b"\n", b"\r", b""])), max_size=12).map(
    lambda parts: b"".join(line + end for line, end in parts)
)


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from([b"", b"GET / HTTP/1.1\r\n", b"\r\n"]),
    st.one_of(TEXTS, st.binary(max_size=100)),
    st.lists(st.integers(0, 200), max_size=6),
)
def test_the_cut_of_the_bytes_makes_no_difference(start, rest, cuts):
    data = start + rest
    whole = sniff(data)
    sniffer = Sniffer(StickyNames("JSESSIONID"))
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for at, end in pairwise(edges):
        sniffer.feed(data[at:end])
    assert (sniffer.result or NEED_DATA) == whole
    assert bytewise(data) == whole


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nCookie: " + b"a=;" * 21_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nCookie: " + b"a" * 64_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"Cookie:\r\n" * 7_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nCookie:" + b"\r\n " * 21_000 + b"\r\n\r\n",
        b"GET /" + b"?a=" * 21_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /" + b"?a=b" * 16_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /" + b";A=b" * 16_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /" + b"xA=" * 21_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /?" + b"xA=" * 21_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /" + b"%61" * 16_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nCookie: " + b"a " * 30_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nCookie: a" + b" " * 60_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nCookie: " + b"a=b;" * 16_000 + b"\r\n\r\n",
    ],
)
def test_no_head_takes_long_or_gives_many_values(data):
    found = sniff(data, "a")
    assert found.http
    assert len(found.values) in {0, MAX_VALUES}
    # A hundred times the usual: only time quadratic in the size would exceed it.
    assert min(timeit.repeat(lambda: sniff(data, "a"), number=1, repeat=3)) < 0.5
