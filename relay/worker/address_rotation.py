"""The addresses of a backend with a host name: each connection uses the next one.

An address that failed within `retry_s` is skipped, unless all have failed.

Never: looks a name up (that is `checker.resolver`).
"""

from __future__ import annotations

from relay.shared.addresses import Addresses, Endpoint

_REMEMBERED = 128
# A session that finds all addresses of a backend failing goes on to the next backend.
MOST_TRIES = 8


class AddressRotation:
    """The addresses of one backend in one worker. Instants are those of the loop.

    After a failure `_failed_until_at` keeps the address until it is full, or until all
    its instants have passed.
    """

    __slots__ = ("_addresses", "_failed_until_at", "_next", "_retry_s")

    def __init__(self, addresses: Addresses, retry_s: float) -> None:
        self._addresses = addresses
        self._retry_s = retry_s
        self._next = 0
        self._failed_until_at: dict[Endpoint, float] = {}

    @property
    def has_address(self) -> bool:
        """False until the name has been looked up, and while it has no address."""
        return bool(self._addresses.endpoints())

    def pick(self, now: float) -> Endpoint | None:
        """The next address that is not marked failed; or, if all are, the next one.

        None without any address.
        """
        endpoints = self._addresses.endpoints()
        count = len(endpoints)
        if not count:
            return None
        self._next = first = (self._next + 1) % count
        for number in range(first, first + count):
            endpoint = endpoints[number % count]
            if self._failed_until_at.get(endpoint, 0.0) <= now:
                self._next = number % count
                return endpoint
        return endpoints[first]

    def failed(self, endpoint: Endpoint, now: float) -> bool:
        """Mark the address failed for retry_s. True if it was not marked already."""
        if len(self._failed_until_at) >= _REMEMBERED:
            self._failed_until_at.clear()
        was_usable = self._failed_until_at.get(endpoint, 0.0) <= now
        self._failed_until_at[endpoint] = now + self._retry_s
        return was_usable

    def others_left(self, tries: int) -> bool:
        """Whether a session that tried this many addresses has another one to try."""
        return tries < min(MOST_TRIES, len(self._addresses.endpoints()))
