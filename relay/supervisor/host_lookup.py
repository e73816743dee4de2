"""Looks up many host names at once, within one deadline.

Look-ups run in threads, so a name server that does not answer delays only its own
names. Some threads may still wait at the deadline, so this runs in a child process that
ends with them.

Never: runs in the supervisor or in a worker.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from relay.checker.host_lookup import Resolve
from relay.config.backend_address import is_service, lookup_name
from relay.config.key_path import pool_path
from relay.config.model import Config
from relay.errors import Problem
from relay.shared.addresses import Located, cell_of, format_endpoint, is_gone, read_addresses
from relay.shared.entities import MAX_ADDRESSES
from relay.shared.scoreboard import SHARED_ROW, Scoreboard

# Longer than 5 s, after which the system's resolver asks its second server.
LOOK_UP_S = 6.0
THREADS = 256


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one look-up: addresses, or an error."""

    addresses: tuple[Located, ...] = ()
    error: str = ""


def look_up_all(
    hosts: Iterable[str], resolve: Resolve, deadline_s: float = LOOK_UP_S
) -> dict[str, Answer]:
    """An answer for every host; an error for those without one at the deadline."""
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
        except RuntimeError:  # the limit of threads; go on with these
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
        found = resolve(host)
    except OSError as error:
        return Answer(error=error.strerror or str(error))
    except Exception as error:  # noqa: BLE001  one bad name must not stop a start
        return Answer(error=f"a bug: {error!r}")
    addresses = found.located[:MAX_ADDRESSES]
    if not addresses:
        return Answer(error=found.nothing or "it has no address")
    return Answer(addresses)


def failed_hosts(
    answers: Mapping[str, Answer], known: Mapping[str, tuple[Located, ...]]
) -> dict[str, str]:
    """Host names that have neither a new address nor a known one, and the error."""
    return {
        host: answer.error
        for host, answer in answers.items()
        if answer.error and not known.get(host)
    }


def unresolved_backends(config: Config, failed: Mapping[str, str]) -> Iterator[Problem]:
    """One problem for every backend whose host name is in `failed`."""
    for name, pool in config.pool.items():
        for index, backend in enumerate(pool.backend):
            host = lookup_name(backend.address)
            if host and host in failed:
                where = f"{pool_path(name)}.backend[{index}].address"
                what = f"{host} does not resolve: {failed[host]}"
                other = "host and port" if is_service(host) else "the IP address"
                yield Problem(where, what, f"correct the name, or write {other}", temporary=True)


def kept_answers(
    answers: Mapping[str, Answer], known: Mapping[str, tuple[Located, ...]]
) -> Iterator[Problem]:
    """One warning for each failed look-up whose last answer is kept."""
    for host, answer in answers.items():
        if answer.error and known.get(host):
            last = ", ".join(map(format_endpoint, known[host]))
            what = f"the name cannot be looked up now: {answer.error}"
            yield Problem(f"host {host}", what, f"its last answer, {last}, is kept")


def known_addresses(
    first: Mapping[str, tuple[Located, ...]], scoreboard: Scoreboard
) -> dict[str, tuple[Located, ...]]:
    """The addresses of names now: the checker's answer, or `first` without one."""
    shared, known = scoreboard.row(SHARED_ROW), {}
    for name, found in first.items():
        cell = cell_of(scoreboard.layout, name)
        known[name] = read_addresses(shared, cell) or (() if is_gone(shared, cell) else found)
    return known
