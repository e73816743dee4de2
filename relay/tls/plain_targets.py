"""Backends without TLS of ours: those of passthrough routes, and those on unix sockets.

SO_PEERCRED of a connected unix socket says which user listens there. This stands for
the backend's certificate.

Never: looks a user or a host name up while connections are served.
"""

from __future__ import annotations

import socket
from typing import Any

from relay.config.backend_address import host_of
from relay.config.key_path import pool_path
from relay.config.pool_model import Pool
from relay.config.unix_addresses import LONGEST_PATH_BYTES
from relay.core.proxy_header_out import SendProxy
from relay.errors import ConfigError, Problem, Reason
from relay.sockets import StreamSocket, peer_uid
from relay.tcp_options import options_of_new
from relay.tls.context_inputs import ContextInputs, endpoint_of, sources_of
from relay.tls.explain import Failure
from relay.tls.generation import PlainTarget
from relay.users import shown_user

NOBODY = -1
"""No process has this user id. A backend whose user is not known is always refused."""


def plain_target(inputs: ContextInputs, name: str, pool: Pool, index: int) -> PlainTarget:
    """A backend of a pool, ready to connect to. Raises ConfigError."""
    where, backend = pool_path(name), pool.backend[index]
    path = backend.unix_path
    sockaddr: tuple[Any, ...] | str = path
    family, host = int(socket.AF_UNIX), "localhost"
    if len(path.encode()) > LONGEST_PATH_BYTES:
        at = f"{where}.backend[{index}].address"
        what = f"{path} is longer than the {LONGEST_PATH_BYTES} bytes of a unix socket's path"
        raise ConfigError([Problem(at, what, "choose a shorter directory")])
    if not path:
        host = host_of(backend.address)
        at = f"{where}.backend[{index}].address"
        family, sockaddr = endpoint_of(at, backend.address, inputs.addresses)
    return PlainTarget(
        where=where,
        index=index,
        pool=name,
        route=backend.route,
        address=backend.address,
        family=family,
        sockaddr=sockaddr,
        name=backend.name or host,
        options=options_of_new(pool.keepalive, pool.user_timeout_s),
        peer_user=backend.peer_user,
        peer_uid=inputs.users.get(backend.peer_user, NOBODY),
        sources=sources_of(where, pool.source),
        send_proxy=SendProxy.of(pool),
    )


def why_wrong_user(sock: StreamSocket, target: PlainTarget) -> Failure | None:
    """Why a unix socket is not the backend's; usually None."""
    uid = peer_uid(sock)
    if uid == target.peer_uid:
        return None
    wanted = target.peer_user
    if not wanted.isdecimal():
        wanted += f" (user id {target.peer_uid})"
    detail = f"{shown_user(uid)} listens on this socket, but peer_user is {wanted}"
    return Failure(Reason.BACKEND_WRONG_USER, detail)
