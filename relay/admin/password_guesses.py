"""Wrong passwords of the balancer-manager page: how many may be judged, and how soon again.

Hashing a password is expensive on purpose (60 ms of one CPU), so a guess is work that
a stranger orders. One guess is computed at a time and WAITING more may wait. An address
has one guess under way, and after each wrong one it must wait twice as long. Clients
beyond these bounds are refused at once. An address that guessed wrong makes room for
one that did not, so the right password from elsewhere gets in during an attack.

Never: knows the password, or keeps more than ADDRESSES addresses.
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
# The answer to a wrong guess is held back this long at most, and HELD of them at once.
LONGEST_HOLD_S = 2.0
HELD = 16
FORGET_S = 900.0
TELL_S = 60.0

log = logging.getLogger(__name__)


class TooManyGuessesError(Exception):
    """The guess is not looked at; try again after `wait_s`."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(wait_s)
        self.wait_s = max(1, math.ceil(wait_s))


@dataclass(slots=True, eq=False)
class Guesser:
    """What is known of one address: its wrong guesses in a row, and until when it has to wait."""

    failures: int = 0
    failed_at: float = 0.0
    until_at: float = 0.0
    busy: bool = False


@dataclass(slots=True, eq=False)
class _Waiting:
    guesser: Guesser
    turn: asyncio.Future[None]


@dataclass(slots=True, eq=False)
class Guesses:
    """All guesses of one process. `tell_at` is when the log may say again that there are wrong ones."""

    _guessers: dict[str, Guesser] = field(default_factory=dict)
    _waiting: list[_Waiting] = field(default_factory=list)
    _computing: bool = False
    _held: int = 0
    _untold: int = 0
    _tell_at: float = 0.0

    async def judge(self, address: str, is_right: Callable[[], bool]) -> bool:
        """Whether the guess is right, computed in a thread. Raises TooManyGuessesError."""
        now = asyncio.get_running_loop().time()
        guesser = self._guesser(_network_of(address), now)
        if guesser.busy or now < guesser.until_at:
            raise TooManyGuessesError(guesser.until_at - now)
        guesser.busy = True
        try:
            right = await self._compute(guesser, is_right)
            if right:
                guesser.failures = 0
            else:
                await self._delay(guesser, address)
        finally:
            guesser.busy = False
        return right

    async def _compute(self, guesser: Guesser, is_right: Callable[[], bool]) -> bool:
        await self._turn(guesser)
        try:
            return await asyncio.to_thread(is_right)
        finally:
            self._computing = False
            self._call_next()

    async def _turn(self, guesser: Guesser) -> None:
        if len(self._waiting) >= WAITING:
            worst = max(self._waiting, key=lambda one: one.guesser.failures)
            if worst.guesser.failures <= guesser.failures:
                raise TooManyGuessesError(1)
            self._waiting.remove(worst)
            if not worst.turn.done():
                worst.turn.set_exception(TooManyGuessesError(1))
        mine = _Waiting(guesser, asyncio.get_running_loop().create_future())
        self._waiting.append(mine)
        self._call_next()
        try:
            await mine.turn
        except asyncio.CancelledError:
            if mine in self._waiting:
                self._waiting.remove(mine)
            elif mine.turn.done() and not mine.turn.cancelled():
                self._computing = False
                self._call_next()
            raise

    def _call_next(self) -> None:
        while self._waiting and not self._computing:
            best = min(self._waiting, key=lambda one: one.guesser.failures)
            self._waiting.remove(best)
            if not best.turn.done():
                self._computing = True
                best.turn.set_result(None)

    async def _delay(self, guesser: Guesser, address: str) -> None:
        now = asyncio.get_running_loop().time()
        delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(guesser.failures, 20))
        guesser.failures += 1
        guesser.failed_at, guesser.until_at = now, now + delay_s
        self._tell(address, guesser, now)
        if self._held >= HELD:
            return
        self._held += 1
        try:
            await asyncio.sleep(min(delay_s, LONGEST_HOLD_S))
        finally:
            self._held -= 1

    def _tell(self, address: str, guesser: Guesser, now: float) -> None:
        self._untold += 1
        if now >= self._tell_at and guesser.failures >= 3:
            log.warning(
                "wrong passwords on the admin page: %d since the last such message, the last one "
                "from %s, its number %d in a row; if nobody mistyped, find out what guesses there",
                self._untold,
                address,
                guesser.failures,
            )
            self._untold, self._tell_at = 0, now + TELL_S

    def _guesser(self, network: str, now: float) -> Guesser:
        guesser = self._guessers.get(network)
        if guesser is None:
            if len(self._guessers) >= ADDRESSES:
                self._make_room()
            guesser = self._guessers[network] = Guesser()
        elif not guesser.busy and now - guesser.failed_at > FORGET_S:
            guesser.failures = 0
        return guesser

    def _make_room(self) -> None:
        """Forget the address that failed longest ago; those that are served now are kept."""
        idle = [key for key, one in self._guessers.items() if not one.busy]
        if idle:
            del self._guessers[min(idle, key=lambda key: self._guessers[key].failed_at)]


def _network_of(address: str) -> str:
    """An IPv6 client owns a whole /64, so that counts as one address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
    return str(found)
