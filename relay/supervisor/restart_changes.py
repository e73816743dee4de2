"""Which changes of the configuration a reload cannot put into use.

Never: changes anything.
"""

from __future__ import annotations

from collections.abc import Iterator

from relay.config.model import Config
from relay.errors import Problem


def changes_that_need_a_restart(running: Config, config: Config) -> Iterator[Problem]:
    """One problem for each of them."""
    if config.relay.state_dir != running.relay.state_dir:
        yield Problem(
            "relay.state_dir",
            f"cannot change from {running.relay.state_dir} while the relay runs",
            "restart the relay",
        )
    if (config.relay.user, config.relay.group, config.relay.admin_user) != (
        running.relay.user,
        running.relay.group,
        running.relay.admin_user,
    ):
        yield Problem(
            "relay.user",
            "user, group and admin_user cannot change while the relay runs",
            "restart the relay",
        )
