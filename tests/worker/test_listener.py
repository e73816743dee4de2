"""A listening socket from the first client to the last, with a real loop."""

import socket

from relay.shared.scoreboard import PHASE, PHASE_DRAINING
from relay.worker.drain import Drain
from relay.worker.listener import Acceptor
from relay.worker.listener_settings import Listener
from relay.worker.loop import Loop
from tests.support.peer import PATIENCE_S

HTTPS = Listener("https", None)


class Reception:
    """What an acceptor and the drain need of a worker; it keeps accepted clients."""

    def __init__(self):
        self.loop = Loop()
        self.admission = self.scoreboard = self
        self.drain_limits_at = (0.0, 0.0)
        self.cells = [0] * (PHASE + 1)
        self.sessions = []

    def has_room(self):
        return True

    def forget_waiting(self):
        pass

    def start(self, worker, listener, sock, address):
        self.sessions.append(sock)


def test_a_client_of_the_turn_that_stops_listening_is_served(stack):
    reception = Reception()
    listener = socket.create_server(("127.0.0.1", 0))
    drain = Drain(reception, [Acceptor(reception, HTTPS, listener, reception.start)], 30)
    clients = []

    class Told:
        def step(self):
            clients.append(
                stack.enter_context(socket.create_connection(listener.getsockname(), PATIENCE_S))
            )
            drain.begin("SIGTERM")
            clients.append(
                stack.enter_context(socket.create_connection(listener.getsockname(), PATIENCE_S))
            )
            assert reception.cells[PHASE] != PHASE_DRAINING
            reception.loop.later(Left())

    class Left:
        def step(self):
            reception.loop.running = False

    reception.loop.later(Told())
    reception.loop.run()
    reception.loop.close()
    assert reception.cells[PHASE] == PHASE_DRAINING
    assert [sock.getpeername() for sock in reception.sessions] == [
        client.getsockname() for client in clients
    ]
    assert listener.fileno() == -1
    for sock in reception.sessions:
        sock.close()


def test_a_socket_that_does_not_listen_yet_costs_one_event(stack):
    """It accepts once it listens."""
    reception = Reception()
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    asked = []

    class Watched(Acceptor):
        def _on_first(self, mask):
            asked.append(mask)
            super()._on_first(mask)

    acceptor = Watched(reception, HTTPS, listener, reception.start)
    clients = []

    class Turns:
        """One step per turn of the loop."""

        def __init__(self):
            self.count = 0

        def step(self):
            self.count += 1
            if self.count == 10:
                assert len(asked) == 1, "a socket that is hung up must not spin"
                listener.listen(5)
                clients.extend(
                    stack.enter_context(
                        socket.create_connection(listener.getsockname(), PATIENCE_S)
                    )
                    for _ in range(2)
                )
            if self.count < 20:
                reception.loop.later(self)
            else:
                reception.loop.running = False

    reception.loop.later(Turns())
    reception.loop.run()
    assert [sock.getpeername() for sock in reception.sessions] == [
        client.getsockname() for client in clients
    ]
    assert len(asked) == 2
    acceptor.close()
    reception.loop.close()
    for sock in reception.sessions:
        sock.close()


def test_a_socket_that_never_listened_is_closed_like_any_other():
    reception = Reception()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    Acceptor(reception, HTTPS, listener, reception.start).close()
    assert (listener.fileno(), reception.sessions) == (-1, [])
    reception.loop.close()
