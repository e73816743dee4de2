"""Downloads one document by HTTP, within limits: time, size, redirects, hosts.

The signature of a revocation list protects it, so plain HTTP is right. The limits
protect the relay from the server: no answer, however slow, large or twisted, takes more
than `TOTAL_S` and `MOST_BYTES`.

Never: runs in the checker's main thread; uses a proxy; sends credentials or cookies.
"""

from __future__ import annotations

import http.client
import re
import socket
import threading
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import relay
from relay.config.crl_url import CrlUrl, parse_crl_url
from relay.core.untrusted import clip
from relay.shared.label_values import (
    CRL_CONNECT_FAILED,
    CRL_HTTP_FAILED,
    CRL_REDIRECT_REFUSED,
    CRL_TIMEOUT,
    CRL_TOO_LARGE,
    CRL_TRUNCATED,
)

TOTAL_S = 10.0
MOST_BYTES = 64 << 20
MOST_REDIRECTS = 3
_PORTION_BYTES = 1 << 16
# Only a few downloads at a time may be larger than this, so that the memory has a bound
# however many servers misbehave.
_SMALL_BYTES = 4 << 20
_large = threading.BoundedSemaphore(2)
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_MAX_AGE = re.compile(r"(?:^|,)\s*max-age\s*=\s*\"?([0-9]{1,10})", re.IGNORECASE)
_MOST_HEADER = 1024  # of a validator, in characters


class FetchError(Exception):
    """A fetch that failed: one of `CRL_FETCH_RESULTS`, and why, in words."""

    def __init__(self, result: str, why: str) -> None:
        super().__init__(why)
        self.result = result


@dataclass(frozen=True, slots=True)
class Validators:
    """What a server said about a document, to ask later whether it has changed."""

    etag: str = ""
    last_modified: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """A server's answer. `body` is None if the document has not changed."""

    body: bytes | None
    validators: Validators
    max_age_s: float | None


class _Socket(socket.socket):
    """A socket of which all calls together end at one instant.

    An ordinary timeout starts again with every byte that arrives.
    """

    deadline = 0.0

    def recv_into(self, *arguments: Any, **named: Any) -> int:
        self.settimeout(_left(self.deadline))
        return super().recv_into(*arguments, **named)

    def sendall(self, *arguments: Any, **named: Any) -> None:
        self.settimeout(_left(self.deadline))
        super().sendall(*arguments, **named)


def download(
    url: str,
    hosts: Container[str] = (),
    known: Validators | None = None,
    *,
    total_s: float = TOTAL_S,
    most_bytes: int = MOST_BYTES,
) -> Document:
    """GET a document. `known`: the validators of the copy that is here, if any.

    Follows redirects to the same host and to `hosts` only. Raises FetchError.
    """
    deadline = time.monotonic() + total_s
    first = parse_crl_url(url)
    with _translated(total_s):
        for _ in range(MOST_REDIRECTS + 1):
            target = parse_crl_url(url)
            found = _get(target, known, deadline, most_bytes)
            if isinstance(found, Document):
                return found
            url = _redirected(url, found, first.host, hosts)
    raise FetchError(CRL_REDIRECT_REFUSED, f"it redirects more than {MOST_REDIRECTS} times")


@contextmanager
def _translated(total_s: float) -> Iterator[None]:
    """Turn the errors of sockets and of HTTP into FetchError."""
    try:
        yield
    except TimeoutError:
        raise FetchError(CRL_TIMEOUT, f"there was no whole answer within {total_s:g} s") from None
    except http.client.IncompleteRead:
        raise FetchError(CRL_TRUNCATED, "the connection ended before the list did") from None
    except http.client.RemoteDisconnected:
        raise FetchError(CRL_HTTP_FAILED, "the server hung up without an answer") from None
    except http.client.HTTPException as error:
        what = clip(f"{type(error).__name__} {error}", 200)
        raise FetchError(CRL_HTTP_FAILED, f"the answer is not HTTP: {what}") from None
    except OSError as error:
        raise FetchError(CRL_CONNECT_FAILED, error.strerror or str(error)) from None


def _get(
    target: CrlUrl, known: Validators | None, deadline: float, most_bytes: int
) -> Document | str:
    """One request: the document, or the Location of a redirect."""
    connection = http.client.HTTPConnection(target.host, target.port)
    with _connect(target, deadline) as sock:
        connection.sock = sock
        headers = {"User-Agent": f"relay/{relay.__version__}", "Connection": "close"}
        if known is not None and known.etag:
            headers["If-None-Match"] = known.etag
        if known is not None and known.last_modified:
            headers["If-Modified-Since"] = known.last_modified
        connection.request("GET", target.target, headers=headers)
        response = connection.getresponse()
        try:
            return _answer(response, known, deadline, most_bytes)
        finally:
            response.close()


def _connect(target: CrlUrl, deadline: float) -> _Socket:
    """Connect to the first address that accepts. Each gets its share of the time."""
    try:
        addresses = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except OSError as error:
        why = f'the name "{target.host}" cannot be looked up: {error.strerror or error}'
        raise FetchError(CRL_CONNECT_FAILED, why) from None
    failure = OSError(None, "the name has no address")
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = _Socket(family, kind, protocol)
        try:
            sock.settimeout(_left(deadline) / (len(addresses) - number))
            sock.connect(address)
        except OSError as error:
            failure = error
            sock.close()
        else:
            sock.deadline = deadline
            return sock
    raise failure


def _answer(
    response: http.client.HTTPResponse, known: Validators | None, deadline: float, most_bytes: int
) -> Document | str:
    status = response.status
    if status in _REDIRECTS:
        return response.headers.get("Location", "")
    if status == http.client.NOT_MODIFIED and known is not None:
        return Document(None, _validators(response, known), _max_age(response))
    if status != http.client.OK:
        raise FetchError(CRL_HTTP_FAILED, f"the server answered {status}")
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"identity", ""}:
        why = f"the answer is compressed ({clip(encoding, 40)}), which was not asked for"
        raise FetchError(CRL_HTTP_FAILED, why)
    body = _read(response, deadline, most_bytes)
    return Document(body, _validators(response), _max_age(response))


def _read(response: http.client.HTTPResponse, deadline: float, most_bytes: int) -> bytes:
    """The whole body. Its bytes are counted: a declared length may be missing."""
    if response.length is not None and response.length > most_bytes:
        raise FetchError(
            CRL_TOO_LARGE,
            f"the list has {response.length} bytes, more than the {most_bytes} allowed",
        )
    portions, received, is_large = [], 0, False
    try:
        while portion := response.read(_PORTION_BYTES):
            portions.append(portion)
            received += len(portion)
            if received > most_bytes:
                raise FetchError(CRL_TOO_LARGE, f"the list has more than {most_bytes} bytes")
            if received > _SMALL_BYTES and not is_large:
                is_large = _large.acquire(timeout=_left(deadline))
                if not is_large:
                    raise FetchError(CRL_TIMEOUT, "other large lists took all the time")
    finally:
        if is_large:
            _large.release()
    if response.length:  # what is left of the declared length
        raise FetchError(CRL_TRUNCATED, f"the connection ended after {received} bytes of the list")
    return b"".join(portions)


def _redirected(url: str, location: str, first_host: str, hosts: Container[str]) -> str:
    """The URL that a redirect leads to. Raises FetchError if it may not be followed."""
    try:
        following = urljoin(url, location)
        target = parse_crl_url(following)
    except ValueError as error:
        what = f"it redirects to {_quoted(location)}, which {error}"
        raise FetchError(CRL_REDIRECT_REFUSED, what) from None
    if not location or (target.host != first_host and target.host not in hosts):
        what = f"it redirects to {_quoted(location)}, another host that is not in crl.hosts"
        raise FetchError(CRL_REDIRECT_REFUSED, what)
    return following


def _validators(response: http.client.HTTPResponse, before: Validators | None = None) -> Validators:
    before = before or Validators()
    return Validators(
        _header(response, "ETag") or before.etag,
        _header(response, "Last-Modified") or before.last_modified,
    )


def _header(response: http.client.HTTPResponse, name: str) -> str:
    """A header that is sent back later; "" if it is not one printable line of ASCII."""
    value: str = response.headers.get(name, "")
    usable = value.isascii() and value.isprintable() and len(value) <= _MOST_HEADER
    return value if usable else ""


def _max_age(response: http.client.HTTPResponse) -> float | None:
    found = _MAX_AGE.search(response.headers.get("Cache-Control", ""))
    if found is None:
        return None
    age = response.headers.get("Age", "0").strip()
    return max(0.0, float(found[1]) - (float(age) if re.fullmatch("[0-9]{1,10}", age) else 0.0))


def _left(deadline: float) -> float:
    """Seconds until then. Raises TimeoutError when it is over."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _quoted(text: str) -> str:
    return f'"{clip(ascii(text)[1:-1], 120)}"'
