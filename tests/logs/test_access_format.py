"""The format of a line, which no peer can change."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ConfigError
from relay.logs.access_format import LINE_BYTES, compile_format
from relay.logs.access_record import FIELDS, Record

SESSION = Record(
    time=1_700_000_000.25,
    session="1-2a",
    listener="https",
    route="app.example.com",
    client="[2001:db8::7]:50123",
    sni="app.example.com",
    alpn="http/1.1",
    tls_version="TLSv1.3",
    cipher="TLS_AES_128_GCM_SHA256",
    group="X25519",
    resumed=True,
    subject=r"CN=Alice A,O=Example\, Inc,C=DE",
    issuer="CN=Client CA",
    serial="5F0A",
    not_after=1_907_150_400.0,
    pool="httpslb",
    backend="worker1",
    why="sticky",
    outbound_tls_version="TLSv1.3",
    outbound_cipher="TLS_AES_256_GCM_SHA384",
    bytes_in=1234,
    bytes_out=56789,
    duration_s=61.5,
    inbound_handshake_s=0.0012,
    reason="finished",
    side="inbound",
)

# The access-log fields that users and scripts rely on, in their order.
PROMISED = (
    "time session listener route client peer proxy sni alpn tls_version cipher group resumed "
    "subject issuer serial not_after pool backend why outbound_tls_version outbound_cipher "
    "bytes_in bytes_out duration_s inbound_handshake_s outbound_handshake_s reason side remedy "
    "detail ech"
)

peer_strings = st.text(max_size=60) | st.text(
    alphabet='"\\\n\r\t\x00\x1b\x7f\x85\u2028é😀 %{}', max_size=60
)
peers = st.builds(
    Record,
    time=st.floats(0, 4e9),
    client=peer_strings,
    sni=peer_strings,
    subject=peer_strings,
    issuer=peer_strings,
    detail=peer_strings,
    tls_version=st.sampled_from(["", "TLSv1.3"]),
    not_after=st.floats(),
    bytes_out=st.integers(0, 2**63),
    duration_s=st.floats(0, 1e9),
    inbound_handshake_s=st.none() | st.floats(),
)


def apache(text: str, record: Record = SESSION) -> str:
    return compile_format(text)(record).decode("ascii")


def test_json_has_the_promised_fields_in_the_promised_order():
    line = json.loads(compile_format("json")(SESSION))
    assert list(line) == PROMISED.split() == list(FIELDS)


def test_json_says_what_the_record_says():
    line = json.loads(compile_format("json")(SESSION))
    assert line["time"] == "2023-11-14T22:13:20.250Z"
    assert line["not_after"] == "2030-06-08T12:00:00Z"
    assert line["resumed"] is True
    assert (line["bytes_in"], line["bytes_out"], line["duration_s"]) == (1234, 56789, 61.5)
    assert (line["inbound_handshake_s"], line["outbound_handshake_s"]) == (0.0012, None)
    as_is = [name for name in FIELDS if isinstance(getattr(SESSION, name), str)]
    assert {name: line[name] for name in as_is} == {name: getattr(SESSION, name) for name in as_is}


def test_a_session_that_got_nowhere_has_a_line_too():
    line = json.loads(compile_format("json")(Record(time=1.0, reason="not_tls")))
    assert line["reason"] == "not_tls"
    assert line["not_after"] is None
    assert apache("common", Record(time=1.0, reason="not_tls")).endswith('] "-" not_tls -\n')


@given(peers)
def test_whatever_peers_say_json_is_one_printable_line_that_says_it(record):
    line = compile_format("json")(record)
    assert line.endswith(b"\n")
    assert line[:-1].decode("ascii").isprintable()
    if len(line) < 1500:
        decoded = json.loads(line)
        assert decoded["sni"].encode("utf-16", "surrogatepass") == record.sni.encode(
            "utf-16", "surrogatepass"
        )


@given(peers)
def test_whatever_peers_say_a_logformat_line_keeps_its_fields(record):
    line = apache(
        '%h|%u|"%{SSL_CLIENT_S_DN}x" %{SSL_CLIENT_S_DN}x %{SSL_TLS_SNI}x "%r" end', record
    )
    assert line.endswith('" end\n')
    assert line[:-1].isprintable()
    unescaped_quotes = line.replace(r"\\", "").replace(r"\"", "").count('"')
    assert unescaped_quotes == 4
    outside = line.replace(r"\\", "").replace(r"\"", "").split('"')[::2]
    assert [part.count(" ") for part in outside] == [0, 3, 1]


def test_a_huge_subject_is_cut_so_that_a_pipe_takes_the_line_whole():
    for size in (4000, 100_000):
        huge = SESSION._replace(subject="😀" * size, sni="a" * 255, detail="\x00" * size)
        for text in ("json", "combined", '"%{SSL_CLIENT_S_DN}x" %u', "%{detail}n" * 300):
            line = compile_format(text)(huge)
            assert len(line) <= LINE_BYTES
            assert line.endswith(b"\n")
            assert line.count(b"\n") == 1
    decoded = json.loads(compile_format("json")(huge))
    assert decoded["subject"].endswith("...")
    assert decoded["reason"] == "finished"


def test_the_article_s_format_works_as_it_stands(monkeypatch):
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    try:
        assert apache(r"%t %h %{SSL_PROTOCOL}x %{SSL_CIPHER}x \"%r\" %b") == (
            "[14/Nov/2023:23:13:20 +0100] 2001:db8::7 TLSv1.3 TLS_AES_128_GCM_SHA256 "
            '"TLS app.example.com" 56789\n'
        )
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("directive", "expected"),
    [
        ("%h", "2001:db8::7"),
        ("%a", "2001:db8::7"),
        ("%l", "-"),
        ("%u", r"Alice\x20A"),
        ('"%u"', '"Alice A"'),
        ("%v", "app.example.com"),
        ("%b", "56789"),
        ("%B", "56789"),
        ("%O", "56789"),
        ("%I", "1234"),
        ("%D", "61500000"),
        ("%T", "61"),
        ("%>s", "finished"),
        ("100%%", "100%"),
        ("%{SSL_CLIENT_S_DN}x", r"CN=Alice\x20A,O=Example\\,\x20Inc,C=DE"),
        ("%{SSL_CLIENT_I_DN}x", r"CN=Client\x20CA"),
        ("%{SSL_CLIENT_M_SERIAL}x", "5F0A"),
        ('"%{SSL_CLIENT_V_END}x"', '"Jun  8 12:00:00 2030 GMT"'),
        ("%{SSL_TLS_SNI}x", "app.example.com"),
        ("%{SSL_SESSION_RESUMED}x", "Resumed"),
        ("%{BALANCER_WORKER_ROUTE}e", "worker1"),
        ("%{BALANCER_NAME}e", "balancer://httpslb"),
        ("%{group}n", "X25519"),
        (r"a\tb", "a\tb"),
    ],
)
def test_a_directive_prints_what_httpd_would(directive, expected):
    assert apache(directive) == expected + "\n"


def test_a_comma_inside_another_attribute_does_not_make_a_user():
    assert apache("%u", SESSION._replace(subject=r"O=x\,CN=root,C=DE")) == "-\n"
    assert apache("%u", SESSION._replace(subject=r"O=x\\,CN=alice")) == "alice\n"


def test_everything_unknown_in_a_format_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        compile_format("%h %Z %{Host}i %{HTTPS}e %")
    assert [problem.what for problem in caught.value.problems] == [
        f"{token!r} is not supported" for token in ("%Z", "%{Host}i", "%{HTTPS}e", "%")
    ]
    assert all(problem.where == "log.access_format" for problem in caught.value.problems)
    assert "%{SSL_PROTOCOL}x" in caught.value.problems[0].remedy


@pytest.mark.parametrize("text", ["", "  ", "%h\n%u", r"%h\n", "%h é"])
def test_a_format_that_could_not_be_one_ascii_line_is_refused(text):
    with pytest.raises(ConfigError, match=r"log\.access_format"):
        compile_format(text)
