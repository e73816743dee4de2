"""Looks many host names up at once, within one deadline.

Each look-up has a thread of its own: one silent server holds up only the names it is asked for.
So this runs in a process of its own, which ends with threads that still wait.

Never: runs in the supervisor or in a worker.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from relay.checker.resolver import Resolve
from relay.config.address import is_ip, parse_address
from relay.config.key_path import pool_path
from relay.config.model import Config
from relay.errors import Problem
from relay.shared.addresses import Ip, cell_of, read_addresses
from relay.shared.catalogue import MAX_ADDRESSES
from relay.shared.scoreboard import SHARED_ROW, Scoreboard

# The system's resolver asks its second server after 5 s.
LOOK_UP_S = 6.0
THREADS = 256


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one look-up: addresses, or what went wrong."""

    addresses: tuple[Ip, ...] = ()
    error: str = ""


def look_up_all(
    hosts: Iterable[str], resolve: Resolve, deadline_s: float = LOOK_UP_S
) -> dict[str, Answer]:
    """The answer for every host; one that did not come in time says so."""
    wanted: queue.SimpleQueue[str] = queue.SimpleQueue()
    answers: queue.SimpleQueue[tuple[str, Answer]] = queue.SimpleQueue()
    names = list(dict.fromkeys(hosts))
    for host in names:
        wanted.put(host)
    deadline = time.monotonic() + deadline_s
    started = 0
    for _ in range(min(THREADS, len(names))):
        try:
            threading.Thread(target=_work, args=(wanted, answers, resolve), daemon=True).start()
        except RuntimeError:  # no more threads for this user: those that there are take turns
            break
        started += 1
    late = f"no answer within {deadline_s:g} s" if started else "no thread could be started"
    found = dict.fromkeys(names, Answer(error=late))
    missing = set(names) if started else set()
    while missing:
        try:
            host, answer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        found[host] = answer
        missing.discard(host)
    return found


def _work(
    wanted: queue.SimpleQueue[str],
    answers: queue.SimpleQueue[tuple[str, Answer]],
    resolve: Resolve,
) -> None:
    while True:
        try:
            host = wanted.get_nowait()
        except queue.Empty:
            return
        answers.put((host, _ask(host, resolve)))


def _ask(host: str, resolve: Resolve) -> Answer:
    try:
        addresses = tuple(resolve(host))[:MAX_ADDRESSES]
    except OSError as error:
        return Answer(error=error.strerror or str(error))
    except Exception as error:  # noqa: BLE001  a name must not end the start of a relay
        return Answer(error=f"a bug: {error!r}")
    return Answer(addresses) if addresses else Answer(error="it has no address")


def homeless(answers: Mapping[str, Answer], known: Mapping[str, tuple[Ip, ...]]) -> dict[str, str]:
    """The host names without an address, with the reason."""
    return {
        host: answer.error
        for host, answer in answers.items()
        if answer.error and not known.get(host)
    }


def unresolved(config: Config, names: Mapping[str, str]) -> Iterator[Problem]:
    """The backends whose host name is one of these."""
    for name, pool in config.pool.items():
        for index, backend in enumerate(pool.backend):
            host, _ = parse_address(backend.address)
            if not is_ip(host) and host in names:
                where = f"{pool_path(name)}.backend[{index}].address"
                what = f"{host} does not resolve: {names[host]}"
                yield Problem(
                    where, what, "correct the name, or write the IP address", temporary=True
                )


def kept(answers: Mapping[str, Answer], known: Mapping[str, tuple[Ip, ...]]) -> Iterator[Problem]:
    """The host names whose last answer is kept."""
    for host, answer in answers.items():
        if answer.error and known.get(host):
            kept = ", ".join(text for text, _ in known[host])
            what = f"the name cannot be looked up now: {answer.error}"
            yield Problem(f"host {host}", what, f"its last answer, {kept}, is kept")


def known_addresses(
    first: Mapping[str, tuple[Ip, ...]], scoreboard: Scoreboard
) -> dict[str, tuple[Ip, ...]]:
    """Where host names lead now: what the checker found last, or what they were looked up with `first`."""
    shared = scoreboard.row(SHARED_ROW)
    return {
        host: read_addresses(shared, cell_of(scoreboard.layout, host)) or found
        for host, found in first.items()
    }
