"""The addresses on which the listeners of a configuration accept.

Never: binds a socket.
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.config.address import parse_address, unix_path
from relay.config.model import Config
from relay.tcp_options import SocketOptions, tcp_options


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """One address of one listener."""

    listener: str
    address: str
    freebind: bool = False
    options: SocketOptions = ()  # that its connections inherit

    @property
    def key(self) -> str:
        """What identifies its sockets across reloads.

        Sockets on a fixed port may change to another listener. Sockets on port 0, which
        the kernel chose, belong to their listener.
        """
        fixed = unix_path(self.address) or parse_address(self.address)[1]
        return self.address if fixed else f"{self.listener} {self.address}"

    @property
    def where(self) -> str:
        """Its name in messages."""
        return f'listener "{self.listener}"'


def listen_addresses(config: Config) -> tuple[ListenAddress, ...]:
    """Every address of every listener, in the configuration's order."""
    return tuple(
        ListenAddress(
            listener.name,
            address,
            listener.freebind,
            tcp_options(listener.keepalive, listener.user_timeout_s),
        )
        for listener in config.listener
        for address in listener.listen
    )
