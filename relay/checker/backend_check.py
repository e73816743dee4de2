"""One health check of one backend: its endpoints in turn, until one passes.

A backend passes if any of its endpoints does. Each endpoint is given `timeout_s`. A
check tries at most MOST_PROBES endpoints, so that it ends.

Never: decides whether a backend is up.
Next: `relay.core.health.next_state`
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable

from relay.checker.check import CheckResult, CheckSettings
from relay.checker.probe import Probe
from relay.checker.probe_result import ProbeResult
from relay.core.untrusted import clip
from relay.errors import Reason
from relay.shared.addresses import Endpoint
from relay.shared.label_values import CHECK_OK
from relay.sockets import format_address
from relay.tls.generation import Target

_DETAIL_CHARACTERS = 1024
# Of one check. The next check goes on with the endpoints after these.
MOST_PROBES = 8


class BackendCheck:
    """One running check, which starts with endpoint number `first`.

    `begin` starts it; `on_end` gets the result once. `at` calls back at an instant.
    """

    def __init__(
        self,
        target: Target,
        settings: CheckSettings,
        endpoints: tuple[Endpoint, ...],
        first: int,
        *,
        selector: selectors.BaseSelector,
        at: Callable[[float, Callable[[], None]], None],
        on_end: Callable[[CheckResult], None],
    ) -> None:
        self._target = target
        self._settings = settings
        self._endpoints = endpoints
        tries = min(MOST_PROBES, len(endpoints))
        self._untried = [(first + i) % len(endpoints) for i in range(tries)]
        self._endpoint = first
        self._selector = selector
        self._at = at
        self._on_end = on_end
        self._began_at = 0.0

    def begin(self) -> None:
        """Start. The check may have ended when this returns."""
        self._began_at = time.monotonic()
        self._probe_next()

    def _probe_next(self) -> None:
        self._endpoint = self._untried.pop(0)
        Probe(
            self._target,
            self._settings,
            self._endpoints[self._endpoint],
            self._began_at,
            selector=self._selector,
            at=self._at,
            on_end=self._on_probe_end,
        ).begin()

    def _on_probe_end(self, result: ProbeResult) -> None:
        failure = result.failure
        # A machine without descriptors or memory has none for the next endpoint either.
        if failure is not None and self._untried and failure.reason != Reason.NO_RESOURCES:
            self._probe_next()
            return
        self._on_end(
            CheckResult(
                CHECK_OK if failure is None else result.label,
                CHECK_OK if failure is None else str(failure.reason),
                clip(result.detail, _DETAIL_CHARACTERS),
                "" if failure is None else failure.remedy,
                self._began_at,
                result.ended_at,
                self._endpoint,
                format_address(self._endpoints[self._endpoint][1]),
                result.tls_version,
                result.not_after_at,
            )
        )
