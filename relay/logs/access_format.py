"""One session as one access-log line: JSON, or an Apache LogFormat.

A line is always printable ASCII with one newline at its end, whatever a peer put into its certificate or server name,
and never longer than LINE_BYTES, so that a pipe takes it whole.

Never: opens, writes or asks the clock (that is `logs.access_log`).
Next: relay.logs.access_log.AccessLog
"""

from __future__ import annotations

import json.encoder
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

from relay.errors import ConfigError, Problem

# Linux's PIPE_BUF: a write of at most this many bytes to a pipe is never mixed with another worker's.
LINE_BYTES = 4096

COMMON = '%h %l %u %t "%r" %>s %b'
COMBINED = COMMON + ' "%{Referer}i" "%{User-Agent}i"'

_LONG_STRINGS = 1024
_END_OF_TIME_AT = 253_402_300_800.0  # the year 10000, where datetime stops
_quote = json.encoder.encode_basestring_ascii


class Record(NamedTuple):
    """What a session tells the log. Strings are empty, and handshake times None, when the session did not get that far.

    `time` is when the client connected, Unix seconds. `client` is address:port, IPv6 in brackets. `subject` and `issuer` are RFC 4514 strings,
    `serial` hexadecimal, `not_after` Unix seconds, 0 without a certificate. Bytes are plaintext: `bytes_in` from the client, `bytes_out` to the client.
    """

    time: float = 0.0
    session: str = ""
    listener: str = ""
    route: str = ""
    client: str = ""
    sni: str = ""
    alpn: str = ""
    tls_version: str = ""
    cipher: str = ""
    group: str = ""
    resumed: bool = False
    subject: str = ""
    issuer: str = ""
    serial: str = ""
    not_after: float = 0.0
    pool: str = ""
    backend: str = ""
    why: str = ""
    outbound_tls_version: str = ""
    outbound_cipher: str = ""
    bytes_in: int = 0
    bytes_out: int = 0
    duration_s: float = 0.0
    inbound_handshake_s: float | None = None
    outbound_handshake_s: float | None = None
    reason: str = ""
    side: str = ""
    remedy: str = ""
    detail: str = ""


FIELDS = Record._fields
Render = Callable[[Record], bytes]


def compile_format(text: str) -> Render:
    """The renderer for `log.access_format`: "json", "common", "combined", or a LogFormat string. Raises ConfigError with everything unknown in it."""
    render = (
        _json_renderer()
        if text == "json"
        else _apache_renderer({"common": COMMON, "combined": COMBINED}.get(text, text))
    )

    def render_bounded(record: Record) -> bytes:
        # Before rendering: a certificate may carry a subject of many kilobytes, and escaping it all would be work a stranger can order.
        if (
            len(record.subject)
            + len(record.issuer)
            + len(record.detail)
            + len(record.sni)
            + len(record.alpn)
            > _LONG_STRINGS
        ):
            record = _clip(record, 512)
        line = render(record)
        return line if len(line) <= LINE_BYTES else _render_clipped(render, record)

    return render_bounded


def _clip(record: Record, size: int) -> Record:
    cut = {
        name: value[:size] + "..."
        for name in FIELDS
        if isinstance(value := getattr(record, name), str) and len(value) > size
    }
    return record._replace(**cut)  # type: ignore[arg-type]  # only string fields are in `cut`


def _render_clipped(render: Render, record: Record) -> bytes:
    """The line with its strings cut until it fits; escapes can make a character twelve bytes long."""
    line = b""
    for size in (128, 32, 8):
        line = render(_clip(record, size))
        if len(line) <= LINE_BYTES:
            return line
    return line[: LINE_BYTES - 1] + b"\n"  # a LogFormat that repeats itself hundreds of times


def _seconds(value: float | None) -> str:
    # JSON has no nan and no infinity.
    return f"{value:.6f}" if value is not None and -1e12 < value < 1e12 else "null"


@lru_cache(maxsize=1024)  # clients come back with the same certificate
def _date(at: float) -> str:
    return (
        f'"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"'
        if 0 < at < _END_OF_TIME_AT
        else "null"
    )


@lru_cache(maxsize=512)
def _listener_json(listener: str, route: str) -> str:
    return f'"listener":{_quote(listener)},"route":{_quote(route)},'


@lru_cache(maxsize=512)
def _tls_json(
    sni: str,
    alpn: str,
    tls_version: str,
    cipher: str,
    group: str,
    resumed: bool,
    subject: str,
    issuer: str,
    serial: str,
    not_after: float,
) -> str:
    return (
        f'"sni":{_quote(sni)},"alpn":{_quote(alpn)},"tls_version":{_quote(tls_version)},"cipher":{_quote(cipher)},"group":{_quote(group)},'
        f'"resumed":{"true" if resumed else "false"},"subject":{_quote(subject)},"issuer":{_quote(issuer)},"serial":{_quote(serial)},"not_after":{_date(not_after)},'
    )


@lru_cache(maxsize=512)
def _backend_json(pool: str, backend: str, why: str, version: str, cipher: str) -> str:
    return f'"pool":{_quote(pool)},"backend":{_quote(backend)},"why":{_quote(why)},"outbound_tls_version":{_quote(version)},"outbound_cipher":{_quote(cipher)},'


@lru_cache(maxsize=512)
def _end_json(reason: str, side: str, remedy: str) -> str:
    return f'"reason":{_quote(reason)},"side":{_quote(side)},"remedy":{_quote(remedy)},'


def _json_renderer() -> Render:
    """Assembled by hand, from pieces that are the same for many sessions: 2.6 µs a line, json.dumps of the same takes 9. Every string goes through the json module's own quoting."""
    cached_second, cached_text = -1, ""

    def render_json(record: Record) -> bytes:
        nonlocal cached_second, cached_text
        (
            at, session, listener, route, client, sni, alpn, tls_version, cipher, group, resumed, subject, issuer, serial, not_after,
            pool, backend, why, outbound_tls_version, outbound_cipher, bytes_in, bytes_out, duration_s, inbound_s, outbound_s, reason, side, remedy, detail,
        ) = record  # fmt: skip
        second = int(at)
        if second != cached_second:
            cached_second, cached_text = (
                second,
                time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)),
            )
        return (
            f'{{"time":"{cached_text}.{int((at - second) * 1000):03d}Z","session":{_quote(session)},{_listener_json(listener, route)}"client":{_quote(client)},'
            f"{_tls_json(sni, alpn, tls_version, cipher, group, resumed, subject, issuer, serial, not_after)}"
            f"{_backend_json(pool, backend, why, outbound_tls_version, outbound_cipher)}"
            f'"bytes_in":{bytes_in:d},"bytes_out":{bytes_out:d},"duration_s":{_seconds(duration_s)},'
            f'"inbound_handshake_s":{_seconds(inbound_s)},"outbound_handshake_s":{_seconds(outbound_s)},'
            f'{_end_json(reason, side, remedy)}"detail":{_quote(detail)}}}\n'
        ).encode("ascii")

    return render_json


# Apache LogFormat.


def _host(r: Record) -> str:
    return r.client.rpartition(":")[0].strip("[]") or r.client


def _common_name(r: Record) -> str:
    # Split by RFC 4514's rules, so that a comma inside another attribute cannot pass for a common name.
    for part in re.findall(r"(?:\\.|[^,+\\])+", r.subject):
        if part.lstrip().startswith("CN="):
            return str(part.lstrip()[3:])
    return ""


def _valid_end(r: Record) -> str:
    """As OpenSSL prints a date: `Jun  8 12:00:00 2030 GMT`."""
    return (
        f"{datetime.fromtimestamp(r.not_after, UTC):%b %e %H:%M:%S %Y GMT}"
        if 0 < r.not_after < _END_OF_TIME_AT
        else ""
    )


def _request(r: Record) -> str:
    # A layer-4 relay has no request line; the server name is the nearest thing to it.
    return f"TLS {r.sni or '-'}" if r.sni or r.tls_version else ""


_VALUES: dict[str, Callable[[Record], str]] = {
    "%h": _host,
    "%a": _host,
    "%l": lambda _: "",
    "%u": _common_name,
    "%v": lambda r: r.route,
    "%r": _request,
    "%s": lambda r: r.reason,
    "%b": lambda r: str(r.bytes_out or "-"),
    "%B": lambda r: str(r.bytes_out),
    "%O": lambda r: str(r.bytes_out),
    "%I": lambda r: str(r.bytes_in),
    "%D": lambda r: str(int(r.duration_s * 1e6)),
    "%T": lambda r: str(int(r.duration_s)),
    "%{SSL_PROTOCOL}x": lambda r: r.tls_version,
    "%{SSL_CIPHER}x": lambda r: r.cipher,
    "%{SSL_CLIENT_S_DN}x": lambda r: r.subject,
    "%{SSL_CLIENT_S_DN_CN}x": _common_name,
    "%{SSL_CLIENT_I_DN}x": lambda r: r.issuer,
    "%{SSL_CLIENT_M_SERIAL}x": lambda r: r.serial,
    "%{SSL_CLIENT_V_END}x": _valid_end,
    "%{SSL_TLS_SNI}x": lambda r: r.sni,
    "%{SSL_SESSION_RESUMED}x": lambda r: (
        ("Resumed" if r.resumed else "Initial") if r.tls_version else ""
    ),
    "%{BALANCER_WORKER_ROUTE}e": lambda r: r.backend,
    "%{BALANCER_NAME}e": lambda r: f"balancer://{r.pool}" if r.pool else "",
    # What `combined` asks for and layer 4 cannot see.
    "%{Referer}i": lambda _: "",
    "%{User-Agent}i": lambda _: "",
    # Our own fields, as httpd shows another module's notes.
    **{f"%{{{name}}}n": lambda r, name=name: str(getattr(r, name)) for name in FIELDS},  # type: ignore[misc]  # a default argument binds the loop's name
}
_SUPPORTED = " ".join(
    [
        "%t",
        "%%",
        *(key for key in _VALUES if not key.endswith("n")),
        "%{FIELD}n for any field of the JSON line",
    ]
)
_TOKEN = re.compile(r"%%|%[<>]?(?:\{[^}]*\})?[A-Za-z]|%[^A-Za-z]?|\\.|[^%\\]+|\\", re.DOTALL)
_LITERALS = {"%%": "%", r"\t": "\t", r"\"": '"', r"\\": "\\"}
_UNSAFE = re.compile(r"[^ !#-\[\]-~]")
_UNSAFE_OR_SPACE = re.compile(r"[^!#-\[\]-~]")
_ESCAPES = {
    '"': r"\"",
    "\\": r"\\",
    "\b": r"\b",
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
    "\v": r"\v",
}


def _escape(match: re.Match[str]) -> str:
    r"""As httpd's ap_escape_logitem: C escapes, and \xhh for every other byte that is not printable ASCII."""
    character = match.group()
    return _ESCAPES.get(character) or "".join(
        f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogatepass")
    )


def _apache_renderer(text: str) -> Render:
    r"""Outside quotes a space in a value is written \x20, so that no name a peer chose can add a field to the line."""
    pieces: list[str | Callable[[Record], str]] = []
    problems: list[Problem] = []
    quoted = False
    for token in _TOKEN.findall(text):
        plain = token.replace("<", "", 1).replace(">", "", 1) if token[:1] == "%" else token
        if token in _LITERALS or token[0] not in "%\\":
            literal = _LITERALS.get(token, token)
            if not literal.isascii() or not literal.replace("\t", " ").isprintable():
                problems.append(
                    Problem(
                        "log.access_format",
                        f"{literal!r} has a character that is not printable ASCII",
                        "a line per session, in ASCII, is all that it can be",
                    )
                )
            quoted ^= literal.count('"') % 2 == 1
            pieces.append(literal)
        elif plain == "%t":
            pieces.append(_clf_time())
        elif plain in _VALUES:
            pieces.append(_escaped(_VALUES[plain], _UNSAFE if quoted else _UNSAFE_OR_SPACE))
        else:
            problems.append(
                Problem(
                    "log.access_format",
                    f"{token!r} is not supported",
                    f"use json, common, combined, or a LogFormat of {_SUPPORTED}",
                )
            )
    if not text.strip():
        problems.append(
            Problem(
                "log.access_format",
                "is empty",
                'use json, common, combined or a LogFormat; log.access = "" turns the access log off',
            )
        )
    if problems:
        raise ConfigError(problems)

    def render_apache(record: Record) -> bytes:
        return (
            "".join([piece if isinstance(piece, str) else piece(record) for piece in pieces]) + "\n"
        ).encode("ascii")

    return render_apache


def _escaped(value: Callable[[Record], str], unsafe: re.Pattern[str]) -> Callable[[Record], str]:
    return lambda record: unsafe.sub(_escape, value(record)) or "-"


def _clf_time() -> Callable[[Record], str]:
    """`[10/Oct/2026:13:55:36 +0200]`, local time as httpd writes it."""
    cached_second, cached_text = -1, ""

    def render_time(record: Record) -> str:
        nonlocal cached_second, cached_text
        second = int(record.time)
        if second != cached_second:
            cached_second, cached_text = (
                second,
                time.strftime("[%d/%b/%Y:%H:%M:%S %z]", time.localtime(second)),
            )
        return cached_text

    return render_time
