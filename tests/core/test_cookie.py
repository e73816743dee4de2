"""What a cookie's value names, and how the relay's own cookie gets into a response."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.cookie import CookieTable, Inserter, opaque_value, render_set_cookie

SECRET = b"sixteen bytes or more"
LINE = b"Set-Cookie: RELAY=abc; Path=/; Secure; HttpOnly; SameSite=Lax\r\n"


def test_the_route_is_what_follows_a_dot():
    table = CookieTable(["worker1", "worker2"])
    assert table.find([b"abc.worker2"]) == 1
    assert table.find([b"a.b.c.worker1"]) == 0
    assert [
        table.find([value])
        for value in (
            b"worker1",
            b"abc",
            b"abc.",
            b"abc.worker3",
            b"abc.Worker1",
            b".",
            b"\xff.\xff",
        )
    ] == [None] * 7
    assert table.find([b".worker1"]) == 0


@pytest.mark.parametrize(
    ("separator", "routes", "value", "expected"),
    [
        (":", ["w1", "w2"], b"abc:w2", "w2"),
        (":", ["w1", "w2"], b"a.b:c:w2", "w2"),
        (":", ["w1", "w2"], b"abc.w2", None),
        (":", ["app.w1", "w1"], b"abc:app.w1", "app.w1"),
        ("!", ["w1"], b"abc!w1", "w1"),
        (".", ["a.w1", "w1"], b"x.a.w1", "a.w1"),
        (".", ["w1", "a.w1"], b"a.w1", "w1"),
        (".", ["w1", "a.b.w1"], b"x.y.a.b.w1", "a.b.w1"),
        (".", ["w1", "a.b.w1"], b"x.b.w1", "w1"),
        (".", ["a.b.w1"], b"a.b.w1", None),
        ("", ["w1", "w2"], b"w2", "w2"),
        ("", ["w1", "a.w2"], b"a.w2", "a.w2"),
        ("", ["w1"], b"abc.w1", None),
    ],
)
def test_the_longest_part_that_is_a_route_counts(separator, routes, value, expected):
    """The first separator counts in httpd: its part is the longest one."""
    found = CookieTable(routes, separator=separator).find([value])
    assert (None if found is None else routes[found]) == expected


def test_the_separator_does_not_matter_for_the_relays_own_value():
    table = CookieTable(["w1", "w2"], pool="app", secret=SECRET, separator="a")
    assert [table.find([value.encode()]) for value in table.values] == [0, 1]


def test_of_several_values_the_first_with_a_known_route_counts():
    table = CookieTable(["worker1", "worker2"])
    assert table.find([b"old.gone", b"abc", b"x.worker2", b"y.worker1"]) == 1
    assert table.find([]) is None
    assert table.values == ()


def test_only_the_relays_own_value_finds_its_backend():
    table = CookieTable(["worker1", "worker2"], pool="app", secret=SECRET)
    assert [table.find([value.encode()]) for value in table.values] == [0, 1]
    assert [
        table.find([value])
        for value in (b"abc.worker1", b"worker1", b"", table.values[0].upper().encode() + b".")
    ] == [None] * 4
    assert table.find([b"foreign", table.values[1].encode()]) == 1


def test_the_relays_cookie_value_never_changes():
    # Fixed values: a change would move clients when one machine of two is upgraded.
    assert opaque_value(SECRET, "app", "worker1") == "92a40897d809f6f2ffc6cffd27f166c2"


def test_the_value_depends_on_secret_pool_and_route():
    values = {
        opaque_value(secret, pool, route)
        for secret in (SECRET, SECRET + b"!", SECRET * 9)
        for pool, route in (("a", "bc"), ("ab", "c"), ("a", "c"))
    }
    assert len(values) == 9
    assert all(len(value) == 32 and int(value, 16) >= 0 for value in values)


def test_a_short_secret_is_refused():
    with pytest.raises(ValueError, match="the cookie secret has 3 bytes; it needs at least 16"):
        opaque_value(b"abc", "app", "worker1")


def test_the_line_has_the_attributes_asked_for():
    assert render_set_cookie("RELAY", "abc") == LINE
    assert (
        render_set_cookie(
            "RELAY", "abc", path="/app", secure=False, http_only=False, same_site=None
        )
        == b"Set-Cookie: RELAY=abc; Path=/app\r\n"
    )
    assert render_set_cookie("RELAY", "abc", same_site="None") == LINE.replace(b"Lax", b"None")


@pytest.mark.parametrize(
    ("name", "value", "settings", "complaint"),
    [
        ("", "abc", {}, "cannot be a cookie's name"),
        ("A B", "abc", {}, "cannot be a cookie's name"),
        ("Ä", "abc", {}, "cannot be a cookie's name"),
        ("A", "a;b", {}, "cannot be a cookie's value"),
        ("A", "a\r\nX: y", {}, "cannot be a cookie's value"),
        ("A", "abc", {"path": "app"}, "cannot be a cookie's path"),
        ("A", "abc", {"path": "/;Domain=x"}, "cannot be a cookie's path"),
        ("A", "abc", {"path": "/\r\nX: y"}, "cannot be a cookie's path"),
        ("A", "abc", {"same_site": "None", "secure": False}, "set both"),
    ],
)
def test_a_cookie_that_is_not_one_valid_line_is_refused(name, value, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        render_set_cookie(name, value, **settings)


def insert(data, cuts=()):
    inserter = Inserter(LINE)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return b"".join(inserter.feed(data[at:end]) for at, end in pairwise(edges)), inserter.done


OK = (
    b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 30\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nnot a head\r\n\r\n"
)
EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"HTTP/1.1 200 OK\r\n", OK[17:]),
        (b"HTTP/1.0 404\r\n", b"\r\n"),
        (b"HTTP/1.1 200\n", b"Server: x\n\n"),
        (b"HTTP/1.1 302 \r\n", b"Location: /\r\n\r\n"),
        (b"HTTP/1.1 500 " + b"very " * 2000 + b"\r\n", b"\r\nHTTP/1.1 200 OK\r\n\r\n"),
        (CONTINUE + b"HTTP/1.1 200 OK\r\n", b"\r\n"),
        (CONTINUE + EARLY_HINTS * 3 + b"HTTP/1.1 200 OK\r\n", OK[17:]),
        (b"HTTP/1.1 100\nX: y\n\nHTTP/1.1 204 No Content\r\n", b"\r\n"),
    ],
)
def test_the_line_follows_the_first_final_status_line(before, after):
    whole = before + after
    assert insert(whole) == (before + LINE + after, True)
    assert insert(whole, range(len(whole))) == (before + LINE + after, True)
    for cut in range(min(len(whole), 200)):
        assert insert(whole, [cut]) == (before + LINE + after, True)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        CONTINUE + b"HTTP/1.1 101\r\n\r\nHTTP/1.1 200 OK\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.x 200 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 20\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"<html>HTTP/1.1 200 OK\r\n",
        b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
        CONTINUE + b"220 ready\r\n",
    ],
)
def test_bytes_of_no_final_response_pass_unchanged(data):
    assert insert(data) == insert(data, range(len(data))) == (data, True)


def test_a_response_that_ends_early_has_lost_nothing():
    whole = CONTINUE + b"HTTP/1.1 200 OK\r\n"
    for size in range(len(whole)):
        assert insert(whole[:size]) == (whole[:size], False)


def test_bytes_after_the_status_line_pass_without_a_copy():
    inserter = Inserter(LINE)
    start, rest = b"HTTP/1.1 200", b" OK\r\n"
    assert inserter.feed(start) is start
    assert inserter.feed(rest) == rest + LINE
    assert inserter.feed(OK) is OK


PIECES = st.lists(
    st.sampled_from(
        [
            b"HTTP/1.1 ",
            b"HTTP/1.0 ",
            b"100",
            b"200",
            b"101",
            b"1",
            b" ",
            b"OK",
            b"\r\n",
            b"\n",
            b"\r",
            b"X: y\r\n",
            b"\r\n\r\n",
        ]
    ),
    max_size=14,
).map(b"".join)


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from([b"", b"HTTP/1.1 200", CONTINUE, EARLY_HINTS[:-2]]),
    st.one_of(PIECES, st.binary(max_size=60)),
    st.lists(st.integers(0, 120), max_size=6),
)
def test_the_cut_of_a_response_makes_no_difference(start, rest, cuts):
    data = start + rest
    whole = insert(data)
    assert insert(data, cuts) == insert(data, range(len(data))) == whole
    out, done = whole
    assert out == data or (done and out.count(LINE) == 1 and out.replace(LINE, b"") == data)
