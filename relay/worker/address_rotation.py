"""Which address of a backend the next connection goes to, where its host name has several: each in turn, without those that failed lately.

Never: looks a name up (that is `checker.resolver`).
"""

from __future__ import annotations

from relay.shared.addresses import Addresses, Endpoint

_REMEMBERED = 64


class AddressRotation:
    """The addresses of one backend, seen from one worker; instants are those of the loop."""

    __slots__ = ("_addresses", "_bad_until_at", "_retry_s", "_turn")

    def __init__(self, addresses: Addresses, retry_s: float) -> None:
        self._addresses = addresses
        self._retry_s = retry_s
        self._turn = 0
        self._bad_until_at: dict[Endpoint, float] = {}

    @property
    def any(self) -> bool:
        """Whether there is one: a name that was never found has none."""
        return bool(self._addresses.endpoints())

    def pick(self, now: float) -> Endpoint | None:
        """The next in turn that has not failed within retry_s; when all have, the next in turn. None where there is none."""
        places = self._addresses.endpoints()
        count = len(places)
        if not count:
            return None
        self._turn = first = (self._turn + 1) % count
        for number in range(first, first + count):
            place = places[number % count]
            if self._bad_until_at.get(place, 0.0) <= now:
                self._turn = number % count
                return place
        return places[first]

    def failed(self, place: Endpoint, now: float) -> bool:
        """Leave this address alone for retry_s. True when this is news."""
        if len(self._bad_until_at) >= _REMEMBERED:
            self._bad_until_at.clear()
        news = self._bad_until_at.get(place, 0.0) <= now
        self._bad_until_at[place] = now + self._retry_s
        return news

    def others_left(self, tries: int) -> bool:
        """Whether a session that has tried so many of the addresses has another to try."""
        return tries < len(self._addresses.endpoints())
