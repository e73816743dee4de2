"""Bounds the work that wrong passwords of the balancer-manager page can cause.

Checking a password is slow on purpose: 60 ms of one CPU. So one password is checked at
a time and at most WAITING more wait. An address has one attempt in progress, and must
wait twice as long after each wrong password. Attempts beyond these limits are refused
at once. When the queue is full, an address without wrong passwords takes the place of
one with them, so the right password gets in from elsewhere during an attack.

Never: knows the password; keeps more than ADDRESSES addresses.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field

WAITING = 3
ADDRESSES = 1024
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 60.0
# The answer to a wrong password is delayed at most this long, and at most HELD answers
# are delayed at the same time.
LONGEST_HOLD_S = 2.0
HELD = 16
FORGET_S = 900.0
LOG_INTERVAL_S = 60.0

log = logging.getLogger(__name__)


class TooManyLoginsError(Exception):
    """The password was not checked. The client may try again after `wait_s`."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(wait_s)
        self.wait_s = max(1, math.ceil(wait_s))


@dataclass(slots=True, eq=False)
class _Address:
    """One address: its consecutive failures, and until when it has to wait."""

    failures: int = 0
    failed_at: float = 0.0
    until_at: float = 0.0
    busy: bool = False


@dataclass(slots=True, eq=False)
class _Attempt:
    """A password in the queue. `turn` is done when it may be checked."""

    address: _Address
    turn: asyncio.Future[None]


@dataclass(slots=True, eq=False)
class LoginThrottle:
    """All login attempts of one process."""

    _addresses: dict[str, _Address] = field(default_factory=dict)
    _queue: list[_Attempt] = field(default_factory=list)
    _checking: bool = False
    _held: int = 0
    _unlogged: int = 0  # wrong passwords since the last warning
    _next_log_at: float = 0.0

    async def check(self, client: str, is_right: Callable[[], bool]) -> bool:
        """Call `is_right` in a thread, in turn. Raises TooManyLoginsError."""
        now = asyncio.get_running_loop().time()
        address = self._address(_network_of(client), now)
        if address.busy or now < address.until_at:
            raise TooManyLoginsError(address.until_at - now)
        address.busy = True
        try:
            right = await self._check_in_turn(address, is_right)
            if right:
                address.failures = 0
            else:
                await self._delay(address, client)
        finally:
            address.busy = False
        return right

    async def _check_in_turn(self, address: _Address, is_right: Callable[[], bool]) -> bool:
        await self._wait_for_turn(address)
        try:
            return await asyncio.to_thread(is_right)
        finally:
            self._checking = False
            self._start_next()

    async def _wait_for_turn(self, address: _Address) -> None:
        if len(self._queue) >= WAITING:
            worst = max(self._queue, key=lambda one: one.address.failures)
            if worst.address.failures <= address.failures:
                raise TooManyLoginsError(1)
            self._queue.remove(worst)
            if not worst.turn.done():
                worst.turn.set_exception(TooManyLoginsError(1))
        mine = _Attempt(address, asyncio.get_running_loop().create_future())
        self._queue.append(mine)
        self._start_next()
        try:
            await mine.turn
        except asyncio.CancelledError:
            if mine in self._queue:
                self._queue.remove(mine)
            elif mine.turn.done() and not mine.turn.cancelled():
                self._checking = False
                self._start_next()
            raise

    def _start_next(self) -> None:
        while self._queue and not self._checking:
            best = min(self._queue, key=lambda one: one.address.failures)
            self._queue.remove(best)
            if not best.turn.done():
                self._checking = True
                best.turn.set_result(None)

    async def _delay(self, address: _Address, client: str) -> None:
        now = asyncio.get_running_loop().time()
        delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(address.failures, 20))
        address.failures += 1
        address.failed_at, address.until_at = now, now + delay_s
        self._warn(address, client, now)
        if self._held >= HELD:
            return
        self._held += 1
        try:
            await asyncio.sleep(min(delay_s, LONGEST_HOLD_S))
        finally:
            self._held -= 1

    def _warn(self, address: _Address, client: str, now: float) -> None:
        self._unlogged += 1
        if now >= self._next_log_at and address.failures >= 3:
            log.warning(
                "wrong passwords on the admin page: %d since the last such message; the last one "
                "came from %s, which has sent %d in a row; if no operator mistyped, find out which "
                "program there is guessing",
                self._unlogged,
                client,
                address.failures,
            )
            self._unlogged, self._next_log_at = 0, now + LOG_INTERVAL_S

    def _address(self, network: str, now: float) -> _Address:
        address = self._addresses.get(network)
        if address is None:
            if len(self._addresses) >= ADDRESSES:
                self._forget_one()
            address = self._addresses[network] = _Address()
        elif not address.busy and now - address.failed_at > FORGET_S:
            address.failures = 0
        return address

    def _forget_one(self) -> None:
        """Forget the idle address that failed longest ago."""
        idle = [key for key, one in self._addresses.items() if not one.busy]
        if idle:
            del self._addresses[min(idle, key=lambda key: self._addresses[key].failed_at)]


def _network_of(client: str) -> str:
    """The address to count: for IPv6 the /64, as a client usually has all of it."""
    try:
        found = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
    return str(found)
