"""Backends that never answer, and the gateways' configuration for them.

Never: accepts a connection.
"""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Literal, Self

from bench.pki import BACKEND_NAME, HOLE_NAME

HoleKind = Literal["blackhole", "tarpit"]

# A second route, by server name, to a pool whose only backend never answers.
_RELAY = f"""
[[listener.route]]
sni = ["{HOLE_NAME}"]
pool = "hole"
certificate = "@PKI@/gateway.crt"
private_key = "@PKI@/gateway.key"
client_ca = "@PKI@/ca.crt"
min_version = "TLSv1.3"

[pool.hole]
machine_certificate = "@PKI@/machine.crt"
machine_key = "@PKI@/machine.key"
backend_ca = "@PKI@/ca.crt"
min_version = "TLSv1.3"

[[pool.hole.backend]]
route = "hole"
address = "127.0.0.1:@HOLE_PORT@"
name = "{BACKEND_NAME}"
"""
_HAPROXY = f"""
backend hole
    server hole 127.0.0.1:@HOLE_PORT@ ssl crt @PKI@/machine.pem ca-file @PKI@/ca.crt \
verify required verifyhost {BACKEND_NAME} sni str({BACKEND_NAME})
"""
_NGINX = f"""
stream {{
    map $ssl_server_name $pool {{
        {HOLE_NAME} hole;
        default backends;
    }}
    upstream hole {{
        server 127.0.0.1:@HOLE_PORT@;
    }}
"""


def with_hole(template: str, gateway: str, port: int) -> str:
    """A gateway's configuration, with the second route added."""
    if gateway == "relay":
        template += _RELAY
    elif gateway == "haproxy":
        rule = f"    use_backend hole if {{ ssl_fc_sni {HOLE_NAME} }}\n    server worker1 "
        template = template.replace("    server worker1 ", rule) + _HAPROXY
    elif gateway == "nginx":
        template = template.replace("\nstream {\n", _NGINX)
        template = template.replace("proxy_pass backends;", "proxy_pass $pool;")
    return template.replace("@HOLE_PORT@", str(port))


class Hole:
    """A listening port that no process accepts from.

    "tarpit": the kernel accepts connections. "blackhole": the queue is full, so the
    kernel drops every SYN.
    """

    def __init__(self, kind: HoleKind) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0 if kind == "blackhole" else 65_535)
        self.port: int = self._listener.getsockname()[1]
        self._fillers: list[socket.socket] = []
        for _ in range(3 if kind == "blackhole" else 0):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", self.port))
            self._fillers.append(filler)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for sock in (self._listener, *self._fillers):
            sock.close()
