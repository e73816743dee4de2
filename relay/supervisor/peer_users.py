"""The user ids of the backends' `peer_user`. This may ask a directory service.

Never: runs in the supervisor or in a worker.
"""

from __future__ import annotations

from relay.config.explain import quoted
from relay.config.key_path import pool_path
from relay.config.model import Config
from relay.errors import Problem
from relay.users import find_uid


def find_peer_users(config: Config) -> tuple[dict[str, int], list[Problem]]:
    """The user ids by name, and one problem for every backend whose user is unknown."""
    uids: dict[str, int] = {}
    problems: list[Problem] = []
    missing: set[str] = set()
    for name, pool in config.pool.items():
        for index, backend in enumerate(pool.backend):
            user = backend.peer_user
            if not user:
                continue
            if user not in uids and user not in missing:
                uid = find_uid(user)
                if uid is None:
                    missing.add(user)
                else:
                    uids[user] = uid
            if user in missing:
                where = f"{pool_path(name)}.backend[{index}].peer_user"
                what = f"this system has no user {quoted(user)}"
                remedy = "name the user that the application runs as, or write its number"
                problems.append(Problem(where, what, remedy))
    return uids, problems
