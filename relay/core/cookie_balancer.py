"""Which backend a client's cookie chooses, and the cookie that the relay inserts.

The value of the cookie names a backend. If it names none, or one that cannot be used,
the value is hashed. All connections of one browser then go to the same backend, and
return to the named backend when it is usable again.

Never: logs a value or the secret.
Next: `relay.core.rendezvous.Rendezvous.pick`
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from relay.config.pool_model import Pool
from relay.core.balance import candidates_of
from relay.core.candidates import CandidateStatus, Counts, Usable
from relay.core.cookie import CookieTable, Inserter, render_set_cookie
from relay.core.rendezvous import Rendezvous
from relay.core.sniff import SniffResult
from relay.core.sticky import cookie_key
from relay.core.sticky_names import StickyNames


class CookieBalancer:
    """The cookies of one pool. A backend is its index in the pool's list."""

    def __init__(self, name: str, pool: Pool, secret: bytes, counts: Counts) -> None:
        configured = candidates_of(pool)
        self.names = StickyNames(pool.cookie, pool.cookie_in_url)
        self._hashing = Rendezvous(
            configured, counts=counts, slow_start_s=pool.slow_start_s, load_factor=pool.load_factor
        )
        self._table = CookieTable(
            [each.name for each in configured],
            pool=name,
            secret=secret,
            separator=pool.cookie_separator,
        )
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

    def update(self, statuses: Sequence[CandidateStatus]) -> None:
        """Use these statuses: changes by operators, and backends that came back."""
        self._hashing.update(statuses)

    def pick(
        self, values: tuple[bytes, ...], tried: Container[int], usable: Usable, now_at: float
    ) -> tuple[int | None, str]:
        """The backend to try, or None, and the access log's `why`."""
        candidates = self._hashing.candidates
        named = self._table.find(values)
        if named is not None and candidates.admits(named, tried, usable):
            return named, "failover" if tried else "cookie"
        other = self._hashing.pick(cookie_key(values[0]), tried, usable, now_at)
        # If no backend is usable, one is tried anyway. The named one is the best
        # choice, because it has the client's session.
        if (
            named is not None
            and (other is None or not usable(other))
            and candidates.admits(named, tried, _any_backend)
        ):
            return named, "failover" if tried else "cookie"
        return other, "hashed" if named is None and not tried else "failover"

    def inserter(self, index: int, found: SniffResult) -> Inserter | None:
        """The inserter of the relay's cookie for the response; None to insert nothing.

        A cookie is inserted only if the request had no valid cookie of the relay.
        """
        if not self._lines or not found.http or self._table.find(found.values) is not None:
            return None
        return Inserter(self._lines[index])


def _any_backend(_index: int) -> bool:
    return True
