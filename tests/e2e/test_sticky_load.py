"""1,000 clients with cookies while one of three backends is killed and comes back."""

import threading
from collections import Counter

import pytest

from tests.support.backend import TlsBackend
from tests.support.client import context_of
from tests.support.gateway import Gateway, wait_until
from tests.support.peer import Peer, dial
from tests.support.tables import listener_table, pool_table, route_table
from tests.support.web import Site, request, response

CLIENTS = 1000
NAMES = ("w1", "w2", "w3")
LOST = "w2"


class Visitors:
    """A share of the clients. Each connects repeatedly, always with its own cookie."""

    def __init__(self, port, context, numbers) -> None:
        self.port, self.context, self.numbers = port, context, numbers
        self.seen = []  # (phase, or both when it changed meanwhile; client; backend or the error)
        self.phase = ""
        self.rounds = 0
        self.stop = False
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self.stop:
            for number in self.numbers:
                phase = self.phase
                try:
                    name = self._visit(number)
                except (OSError, AssertionError, EOFError) as error:
                    name = f"failed: {error!r}"
                self.seen.append(
                    (phase if phase == self.phase else f"{phase}, {self.phase}", number, name)
                )
                if self.stop:
                    return
            self.rounds += 1

    def _visit(self, number) -> str:
        client: Peer = dial(self.port, self.context)
        try:
            client.send(request(f"JSESSIONID=session{number}.{home(number)}"))
            name = response(client)[1].decode()
            client.close()
            return name
        finally:
            client.sock.close()


def home(number) -> str:
    return NAMES[number % 3]


@pytest.mark.serial
def test_a_dead_backend_moves_only_its_own_clients(pki):
    """Only requests that had reached the dead backend fail."""

    def open_site(name, port=0):
        return TlsBackend(pki.backend.certificate, pki.backend.key, pki.ca, Site(name), port=port)

    sites = {name: open_site(name) for name in NAMES}
    body = listener_table(route_table(pki)) + pool_table(
        pki, [sites[name].address for name in NAMES], sticky="cookie", retry_s=1
    )
    with Gateway(body, relay={"workers": 2}) as relay:
        context = context_of(pki)
        port = int(relay.endpoints["listeners"]["https"][0].rpartition(":")[2])
        crowd = [Visitors(port, context, range(part, CLIENTS, 4)) for part in range(4)]

        def all_again(phase):
            """Every client connects at least once more in this phase."""
            before = [each.rounds for each in crowd]
            for each in crowd:
                each.phase = phase
            wait_until(
                f"all clients have come while the backend {phase}",
                lambda: all(
                    each.rounds >= was + 2 for each, was in zip(crowd, before, strict=True)
                ),
                120,
            )

        def served_by_lost():
            """The visits to the backend that died, since it was opened again."""
            return [
                visit
                for each in crowd
                for visit in each.seen
                if (visit[0], visit[2]) == ("returns", LOST)
            ]

        for each in crowd:
            each.phase = "lives"
            each.thread.start()
        try:
            wait_until("all clients have come", lambda: all(each.rounds for each in crowd), 120)
            reached = sites[LOST].accepted
            assert reached
            for each in crowd:
                each.phase = "dies"
            sites[LOST].close()
            all_again("is dead")
            for each in crowd:
                each.phase = "returns"
            sites[LOST] = open_site(LOST, sites[LOST].port)
            # Not used for retry_s after the last failure. Then one client tries it, and
            # the others return when it has answered that client.
            wait_until(
                "the backend serves more than the client that tried it",
                lambda: len(served_by_lost()) > 1,
                30,
            )
            all_again("is back")
        finally:
            for each in crowd:
                each.stop = True
            for each in crowd:
                each.thread.join(20)
            for site in (*sites.values(),):
                site.close()
    seen = [visit for each in crowd for visit in each.seen]
    assert len(seen) > 3 * CLIENTS
    assert (
        Counter(visit for visit in seen if home(visit[1]) != LOST and visit[2] != home(visit[1]))
        == {}
    ), "moved, or failed, with a living backend"
    failed = [visit for visit in seen if visit[2].startswith("failed")]
    assert {phase for phase, *_ in failed} <= {"lives, dies", "dies", "dies, is dead"}, (
        "only what the backend had in its hands when it died"
    )
    assert len(failed) <= len(crowd), "each visitor has one request at a time"
    assert {
        name
        for phase, number, name in seen
        if home(number) == LOST and phase == "lives" and not name.startswith("failed")
    } == {LOST}
    moved = {}
    for phase, number, name in seen:
        if home(number) == LOST and phase == "is dead":
            moved.setdefault(number, set()).add(name)
    assert moved
    assert all(len(names) == 1 and LOST not in names for names in moved.values()), (
        "each session goes to one other backend"
    )
    assert {name for names in moved.values() for name in names} == {"w1", "w3"}, (
        "and they are spread"
    )
    assert {
        name for phase, number, name in seen if home(number) == LOST and phase == "is back"
    } == {LOST}
