"""Which backend a cookie chooses, and the cookie that says so the next time.

The value names a backend, or is hashed: so all connections of one browser go to the same backend also when the one it names
cannot be had, and go back when it can.

Never: logs a value or the secret.
Next: `relay.core.balance.Rendezvous.pick`
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from relay.config.model import Pool
from relay.core.balance import Rendezvous
from relay.core.cookie import CookieTable, Inserter, render_set_cookie
from relay.core.roster import Candidate, Counts, Status, Usable
from relay.core.sniff import Sniffed
from relay.core.sticky import cookie_key


class CookieChoice:
    """One pool's cookies. Members are indices, as everywhere."""

    def __init__(self, name: str, pool: Pool, secret: bytes, counts: Counts) -> None:
        members = [
            Candidate(backend.route, backend.weight, backend.standby, backend.max_connections)
            for backend in pool.backend
        ]
        self._hashing = Rendezvous(
            members, counts=counts, slow_start_s=pool.slow_start_s, load_factor=pool.load_factor
        )
        self._table = CookieTable([member.name for member in members], pool=name, secret=secret)
        self._lines = [
            render_set_cookie(
                pool.cookie,
                value,
                path=pool.cookie_path,
                secure=pool.cookie_secure,
                http_only=pool.cookie_http_only,
                same_site=pool.cookie_same_site or None,
            )
            for value in self._table.values
        ]

    def use(self, statuses: Sequence[Status]) -> None:
        """What operators have changed, and who has come back."""
        self._hashing.use(statuses)

    def pick(
        self, values: tuple[bytes, ...], tried: Container[int], usable: Usable, now_at: float
    ) -> tuple[int | None, str]:
        """The member to try, None when there is none, and why it is this one."""
        roster = self._hashing.roster
        named = self._table.find(values)
        if named is not None and roster.admits(named, tried, usable):
            return named, "failover" if tried else "cookie"
        other = self._hashing.pick(cookie_key(values[0]), tried, usable, now_at)
        # A pool of which nobody is usable tries anyway: then rather the one that knows the client.
        if (
            named is not None
            and (other is None or not usable(other))
            and roster.admits(named, tried, _whoever)
        ):
            return named, "failover" if tried else "cookie"
        return other, "hashed" if named is None and not tried else "failover"

    def inserter(self, member: int, found: Sniffed) -> Inserter | None:
        """What puts our cookie into the response to a request that had none of ours; None when nothing is to be put there."""
        if not self._lines or not found.http or self._table.find(found.values) is not None:
            return None
        return Inserter(self._lines[member])


def _whoever(_member: int) -> bool:
    return True
