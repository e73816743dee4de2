r"""The access log as an Apache LogFormat.

Outside quotes a space in a value becomes \x20, so that no name from a peer can add a
field to the line.

Never: emits a byte that is not printable ASCII, except tabs and the newline.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime

from relay.errors import ConfigError, Problem
from relay.logs.access_record import END_OF_TIME_AT, FIELDS, Record, Render

_KEY = "log.access_format"
COMMON = '%h %l %u %t "%r" %>s %b'
COMBINED = COMMON + ' "%{Referer}i" "%{User-Agent}i"'


def _host_of(address: str) -> str:
    return address.rpartition(":")[0].strip("[]") or address


def _host(r: Record) -> str:
    return _host_of(r.client)


def _common_name(r: Record) -> str:
    # Split by RFC 4514's rules: an escaped comma in another attribute must not start a
    # common name.
    for part in re.findall(r"(?:\\.|[^,+\\])+", r.subject):
        if part.lstrip().startswith("CN="):
            return str(part.lstrip()[3:])
    return ""


def _valid_end(r: Record) -> str:
    """The date in OpenSSL's format: `Jun  8 12:00:00 2030 GMT`."""
    return (
        f"{datetime.fromtimestamp(r.not_after, UTC):%b %e %H:%M:%S %Y GMT}"
        if 0 < r.not_after < END_OF_TIME_AT
        else ""
    )


def _request(r: Record) -> str:
    # A layer-4 relay sees no request line. The server name takes its place.
    return f"TLS {r.sni or '-'}" if r.sni or r.tls_version else ""


def _field(name: str) -> Callable[[Record], str]:
    return lambda r: str(getattr(r, name))


def _proxy(r: Record) -> str:
    return ",".join(f"{name}={value}" for name, value in r.proxy)


def _peer_host(r: Record) -> str:
    return _host_of(r.peer or r.client)


DIRECTIVES: dict[str, Callable[[Record], str]] = {
    "%h": _host,
    "%a": _host,
    "%{c}a": _peer_host,
    "%{c}h": _peer_host,
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
    # `combined` has these two. A layer-4 relay cannot see them.
    "%{Referer}i": lambda _: "",
    "%{User-Agent}i": lambda _: "",
    # The fields of the JSON line, as httpd prints the notes of its modules.
    **{f"%{{{name}}}n": _field(name) for name in FIELDS},
    "%{proxy}n": _proxy,
}
_SUPPORTED = " ".join(
    [
        "%t",
        "%%",
        *(key for key in DIRECTIVES if not key.endswith("n")),
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
    r"""As httpd's ap_escape_logitem: C escapes, \xhh for other unprintable bytes."""
    character = match.group()
    return _ESCAPES.get(character) or "".join(
        f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogatepass")
    )


def apache_renderer(text: str) -> Render:
    """The renderer for a LogFormat string. Raises ConfigError with all its problems."""
    pieces = _compile(text)

    def render_apache(record: Record) -> bytes:
        return (
            "".join([piece if isinstance(piece, str) else piece(record) for piece in pieces]) + "\n"
        ).encode("ascii")

    return render_apache


def _compile(text: str) -> list[str | Callable[[Record], str]]:
    """The literals and fields of a LogFormat string. Raises ConfigError."""
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
                        _KEY,
                        f"{literal!r} has a character that is not printable ASCII",
                        "remove it; a log line has only printable ASCII and no line break",
                    )
                )
            quoted ^= literal.count('"') % 2 == 1
            pieces.append(literal)
        elif plain == "%t":
            pieces.append(_clf_time())
        elif plain in DIRECTIVES:
            pieces.append(_escaped(DIRECTIVES[plain], _UNSAFE if quoted else _UNSAFE_OR_SPACE))
        else:
            problems.append(
                Problem(
                    _KEY,
                    f"{token!r} is not supported",
                    f"use json, common, combined, or a LogFormat of {_SUPPORTED}",
                )
            )
    if not text.strip():
        problems.append(
            Problem(
                _KEY,
                "is empty",
                "use json, common, combined or a LogFormat; "
                'log.access = "" turns the access log off',
            )
        )
    if problems:
        raise ConfigError(problems)
    return pieces


def _escaped(value: Callable[[Record], str], unsafe: re.Pattern[str]) -> Callable[[Record], str]:
    return lambda record: unsafe.sub(_escape, value(record)) or "-"


def _clf_time() -> Callable[[Record], str]:
    """`[10/Oct/2026:13:55:36 +0200]`: local time, as in httpd."""
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
