"""Asks `/readyz` again and again while a gateway is reloaded and upgraded.

A balancer asks the same way. It takes a relay out of service that refuses the
connection or says 503, although the relay serves.

Never: asks while the gateway is restarted, because then it really is away.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from typing import Final

PAUSE_S: Final = 0.05
_PATIENCE_S: Final = 60.0  # another process starts meanwhile, perhaps on a busy machine
_NAMED: Final = 20  # failures that are told


class ReadyPoller:
    """The answers of `/readyz` at one address."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._over = threading.Event()
        self._asks = threading.Lock()  # held while it asks, and during a restart
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self.longest_s = 0.0

    def start(self) -> None:
        """Ask until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._over.set()
        self._thread.join(2 * _PATIENCE_S)

    @property
    def pause(self) -> threading.Lock:
        """A context in which it does not ask."""
        return self._asks

    def _run(self) -> None:
        while not self._over.wait(PAUSE_S):
            with self._asks:
                began_at = time.monotonic()
                answer = self._ask()
                self.longest_s = max(self.longest_s, time.monotonic() - began_at)
            self.answers[answer] += 1
            if answer != "200" and len(self.failures) < _NAMED:
                self.failures.append(f"/readyz: {answer} at {time.time():.2f}")

    def _ask(self) -> str:
        connection = http.client.HTTPConnection(*self._address, timeout=_PATIENCE_S)
        try:
            connection.request("GET", "/readyz")
            reply = connection.getresponse()
            body = reply.read(200).decode(errors="replace").strip()
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}"[:120]
        else:
            return "200" if reply.status == http.HTTPStatus.OK else f"{reply.status} {body}"
        finally:
            connection.close()
