"""What the names in backends' addresses stand for now, for `relay status`.

All services, and those host names that cannot be looked up or have no address.

Never: looks a name up.
"""

from __future__ import annotations

from collections.abc import Iterable

from relay.config.backend_address import is_service
from relay.shared.addresses import cell_of, endpoint_reply, is_failing, is_gone, read_addresses
from relay.shared.replies import NameReply
from relay.shared.scoreboard import SHARED_ROW, Scoreboard


def name_facts(names: Iterable[str], scoreboard: Scoreboard) -> list[NameReply]:
    """The names that are worth a line."""
    shared, layout = scoreboard.row(SHARED_ROW), scoreboard.layout
    found: list[NameReply] = []
    for name in names:
        first = cell_of(layout, name)
        gone, failing = is_gone(shared, first), is_failing(shared, first)
        if gone or failing or is_service(name):
            located = read_addresses(shared, first) or ()
            endpoints = [endpoint_reply(each) for each in located]
            found.append({"name": name, "endpoints": endpoints, "gone": gone, "failing": failing})
    return found
