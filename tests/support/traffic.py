"""Clients that use a relay while a test changes it."""

from __future__ import annotations

import os
import socket
import threading

from tests.support.client import context_of
from tests.support.gateway import wait_until

PATIENCE_S = 20


class Traffic:
    """Clients that send requests and compare the answers until they are stopped.

    `failures` has every error.
    """

    def __init__(self, pki, port, clients=3, patience_s=PATIENCE_S):
        self._patience_s = patience_s
        self.context = context_of(pki)
        self.port = port
        self.failures = []
        self.done = [0] * clients
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._visit, args=(number,)) for number in range(clients)
        ]

    def _visit(self, number):
        while not self._stop.is_set():
            said = f"client {number} request {self.done[number]}".encode()
            try:
                with self.context.wrap_socket(
                    socket.create_connection(("127.0.0.1", self.port), self._patience_s),
                    server_hostname="app.example.com",
                ) as tls:
                    tls.settimeout(self._patience_s)
                    tls.sendall(said)
                    answer = tls.recv(1000)
                if answer != said:
                    self.failures.append(f"{said!r} was answered {answer!r}")
            except OSError as error:
                self.failures.append(f"{said!r}: {error!r}")
            self.done[number] += 1

    def wait_for_more(self, count=10):
        """Wait until every client has had `count` more answers."""
        target = [done + count for done in self.done]
        wait_until(
            "the clients make progress",
            lambda: all(done >= wanted for done, wanted in zip(self.done, target, strict=True)),
            self._patience_s,
        )

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)


class LongSession:
    """One session that sends and compares until it is stopped.

    `failures` has every error.
    """

    def __init__(self, pki, port):
        self.failures = []
        self.rounds = 0
        self._stop = threading.Event()
        self._tls = context_of(pki).wrap_socket(
            socket.create_connection(("127.0.0.1", port), PATIENCE_S),
            server_hostname="app.example.com",
        )
        self._tls.settimeout(PATIENCE_S)
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        try:
            while not self._stop.wait(0.05):
                said = os.urandom(3000)
                self._tls.sendall(said)
                heard = b""
                while len(heard) < len(said):
                    more = self._tls.recv(len(said) - len(heard))
                    if not more:
                        raise ConnectionError("the session ended")
                    heard += more
                if heard != said:
                    raise ValueError("the answer differs")
                self.rounds += 1
        except (OSError, ValueError) as error:
            self.failures.append(repr(error))

    def wait_for_more(self, count=2):
        """Wait until it has had `count` more answers."""
        wanted = self.rounds + count
        wait_until("the session goes on", lambda: self.failures or self.rounds >= wanted)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(PATIENCE_S)
        self._tls.close()
