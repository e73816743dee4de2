"""Reads a PostgreSQL server's answer to the request for TLS.

Exactly one byte is read before TLS, and nothing may follow it: see
`relay.core.postgres`.

Never: goes on without TLS.
Next: `relay.tls.stream.connect`
"""

from __future__ import annotations

from socket import MSG_DONTWAIT, MSG_PEEK

from relay.core.postgres import ERROR, NO, YES, describe_error
from relay.errors import Reason, Side
from relay.sockets import StreamSocket
from relay.tls.explain import Failure, explain_errno
from relay.tls.stream import DONE, STEP_WANT_READ, Progress

_MAX_ERROR_BYTES = 1024
_UNANSWERED = "instead of answering the request for TLS (SSLRequest)"


def read_answer(sock: StreamSocket) -> Progress | Failure:
    """DONE if TLS may begin, STEP_WANT_READ, or why it may not."""
    try:
        answer = sock.recv(1, MSG_DONTWAIT)
    except BlockingIOError:
        return STEP_WANT_READ
    except ConnectionResetError as error:
        return Failure(
            Reason.BACKEND_GONE, f"it reset the connection {_UNANSWERED}", error.errno or 0
        )
    except OSError as error:
        return explain_errno(Side.OUTBOUND, error.errno or 0)
    if not answer:
        return Failure(Reason.BACKEND_GONE, f"it closed the connection {_UNANSWERED}")
    more = _waiting(sock)
    if answer == YES:
        if not more:
            return DONE
        what = f"{len(more)} bytes followed its answer to SSLRequest before TLS began"
        return Failure(Reason.BACKEND_STARTTLS_ERROR, what)
    if answer == NO:
        return Failure(Reason.BACKEND_NO_TLS, "the server has no TLS: set ssl = on in it")
    if answer == ERROR:
        what = f'it answered SSLRequest with an error: "{describe_error(more)}"'
        return Failure(Reason.BACKEND_STARTTLS_ERROR, what)
    what = f"it answered SSLRequest with {answer!r}; it is not PostgreSQL"
    return Failure(Reason.BACKEND_STARTTLS_ERROR, what)


def _waiting(sock: StreamSocket) -> bytes:
    """What has arrived and was not read."""
    try:
        return sock.recv(_MAX_ERROR_BYTES, MSG_PEEK | MSG_DONTWAIT)
    except OSError:
        return b""
