"""Why a health check failed: reason, detail and remedy, for the log and the page.

Never: decides whether a check has failed.
"""

from __future__ import annotations

from typing import NamedTuple

from relay.checker.check import CheckSettings
from relay.errors import Reason
from relay.remedies import REMEDIES
from relay.tls.explain import Failure

_IF_SLOW = (
    "find out whether it is overloaded or a firewall drops packets; "
    "if it is only slow, raise the pool's health.timeout_s"
)
_IF_NOT_HTTP = "correct the backend's port, or remove health.http_get"


class CheckFailure(NamedTuple):
    """One failure. `reason` is a `Reason`, or a word for the GET: see `CheckResult`."""

    reason: str
    detail: str
    remedy: str


def of_reason(failure: Failure) -> CheckFailure:
    """A failure that a session can have too."""
    return CheckFailure(failure.reason, failure.detail, REMEDIES[failure.reason])


def connect_timeout(settings: CheckSettings) -> CheckFailure:
    """The connection was not accepted in time."""
    what = f"it did not accept the connection {_within(settings)}"
    return CheckFailure(Reason.BACKEND_TIMEOUT, what, _IF_SLOW)


def handshake_timeout(settings: CheckSettings) -> CheckFailure:
    """The TLS handshake was not finished in time."""
    what = f"it did not finish the TLS handshake {_within(settings)}"
    return CheckFailure(Reason.BACKEND_HANDSHAKE_TIMEOUT, what, _IF_SLOW)


def answer_timeout(settings: CheckSettings) -> CheckFailure:
    """The GET was not answered in time."""
    what = f"GET {settings.path} was not answered {_within(settings)}"
    return CheckFailure("http_timeout", what, _IF_SLOW)


def closed_after_handshake() -> CheckFailure:
    """The backend closed the connection before it was asked anything."""
    return CheckFailure(
        Reason.BACKEND_GONE,
        "it closed the connection right after the TLS handshake",
        "see its log; it may not accept the pool's machine_certificate",
    )


def closed_before_answer(path: str) -> CheckFailure:
    """The backend closed the connection after the GET."""
    what = f"it closed the connection instead of answering GET {path}"
    return CheckFailure("http_gone", what, "see its log")


def data_before_request(path: str) -> CheckFailure:
    """The backend sent data before the GET, which an HTTP server never does."""
    return CheckFailure("not_http", f"it sent data before GET {path} was sent", _IF_NOT_HTTP)


def not_http(path: str, why: str) -> CheckFailure:
    """The answer to the GET is not HTTP/1.1."""
    return CheckFailure(
        "not_http", f"its answer to GET {path} is not HTTP/1.1: {why}", _IF_NOT_HTTP
    )


def wrong_status(path: str, status: int) -> CheckFailure:
    """The answer has a status that health.http_status does not accept."""
    return CheckFailure(
        "http_status",
        f"GET {path} answered {status}",
        "see the backend's log; health.http_status lists the accepted statuses",
    )


def _within(settings: CheckSettings) -> str:
    return f"within health.timeout_s ({settings.timeout_s:g} s)"
