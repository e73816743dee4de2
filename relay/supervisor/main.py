"""The entry of the supervisor process.

Never: hides an error: one before the relay served is a failed start, a later one is
fatal.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from relay.config.load import load_config
from relay.core.fleet_view import Rules
from relay.errors import FatalError, RelayError
from relay.logs import messages
from relay.sandbox.confinement import hide_memory
from relay.supervisor import handover, kept_inspection, preflight
from relay.supervisor.needed_calls import refuse_without_needed_calls
from relay.supervisor.parts import Parts, Work
from relay.supervisor.signals import EarlySignals
from relay.supervisor.supervisor import Supervisor
from relay.tls.certificates.provider_keys import leave_to_children
from relay.worker.main import run_worker

log = logging.getLogger(__name__)


def run(
    config_path: Path, work: Work = run_worker, rules: Rules | None = None, *, strict: bool = False
) -> int:
    """Run the relay in the foreground until it is told to end. Returns the exit code.

    `work` is what a forked worker does; `rules` are the time limits.
    Raises ConfigError and StartupError before a connection was accepted; then nothing
    is left open. Raises FatalError later.
    """
    given = handover.receive()
    if given is None:
        refuse_without_needed_calls()
    hide_memory()
    leave_to_children()
    if given is not None and given.purpose == "try":
        return preflight.check(config_path, given.state, strict=strict)
    taken = None if given is None else given.state
    early = EarlySignals() if taken is None else None
    # What the version before an upgrade has left, and what this one has read before it.
    inspected = None if taken is None else kept_inspection.take(taken)
    config = load_config(config_path) if inspected is None else inspected.config
    messages.setup(config.log.level, process="supervisor")
    if openssl_conf := os.environ.get("OPENSSL_CONF"):
        log.info("OpenSSL uses the settings in %s (OPENSSL_CONF)", openssl_conf)
    parts: Parts | None = None
    try:
        parts = Parts(config_path, work, rules, strict=strict, taken=taken, inspected=inspected)
        if early is not None and early.hung_up:
            parts.reloads.request(None)
        return Supervisor(parts).run()
    except (RelayError, OSError, MemoryError) as error:
        if taken is None and (parts is None or not parts.announcer.served):
            raise
        log.critical(
            "the supervisor cannot continue; its workers finish their sessions", exc_info=True
        )
        raise FatalError(
            f"the relay has served and cannot continue: {error or type(error).__name__}"
        ) from error
    finally:
        if parts is not None:
            parts.close()
        messages.last_flush()
