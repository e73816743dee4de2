"""Whether this machine has the addresses that pools connect from.

Never: sends anything.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

from relay.config.key_path import pool_path
from relay.config.model import Config
from relay.errors import ConfigError, Problem
from relay.sockets import SourceError, bind_source
from relay.tls.context_inputs import sources_of


def missing_sources(config: Config) -> Iterator[Problem]:
    """The addresses in `source` that this machine cannot connect from."""
    for name, pool in config.pool.items():
        where = f"{pool_path(name)}.source"
        try:
            sources = sources_of(pool_path(name), pool.source)
        except ConfigError as error:
            yield from error.problems
            continue
        for family, address in sources.items():
            try:
                with socket.socket(family, socket.SOCK_STREAM) as probe:
                    bind_source(probe, address)
            except SourceError as error:
                missing = error.errno == errno.EADDRNOTAVAIL
                remedy = "no interface of this machine has this address; see: ip address"
                yield Problem(
                    where, error.strerror or "", remedy if missing else "correct the address"
                )
            except OSError as error:
                what = f"cannot connect from {address[0]}: {error.strerror}"
                yield Problem(where, what, "correct the address")
