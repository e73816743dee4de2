"""The user ids of the backends' `peer_user`. This may ask a directory service.

Never: runs in the supervisor or in a worker.
"""

from __future__ import annotations

from relay.config.explain import quoted
from relay.config.key_path import pool_path
from relay.config.model import Config
from relay.errors import Problem
from relay.users import OVERFLOW_UID, find_uid

_REMEDY = "name the user that the application runs as, or write its number"
_OWN_USER = "run the application as a user of its own"


def find_peer_users(config: Config) -> tuple[dict[str, int], list[Problem]]:
    """The user ids by name, and one problem for every backend with a wrong user."""
    uids: dict[str, int | None] = {}
    problems: list[Problem] = []
    for name, pool in config.pool.items():
        for index, backend in enumerate(pool.backend):
            user = backend.peer_user
            if not user:
                continue
            if user not in uids:
                uids[user] = find_uid(user)
            where = f"{pool_path(name)}.backend[{index}].peer_user"
            if uids[user] is None:
                what = f"this system has no user {quoted(user)}"
                problems.append(Problem(where, what, _REMEDY))
            elif uids[user] == OVERFLOW_UID:
                what = (
                    f"{quoted(user)} has user id {OVERFLOW_UID}, which every user of another user"
                    " namespace seems to have, so any container could be the backend"
                )
                problems.append(Problem(where, what, _OWN_USER))
    return {user: uid for user, uid in uids.items() if uid is not None}, problems
