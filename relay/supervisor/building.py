"""Builds a generation from what an inspection has found, in steps of milliseconds.

Never: reads a file.
Next: `relay.tls.contexts.build_steps`
"""

from __future__ import annotations

import logging
from collections.abc import Generator

from relay.files import Files
from relay.supervisor.inspection import Inspection
from relay.supervisor.list_sets import share_sets
from relay.supervisor.prepared import Prepared
from relay.tls.context_inputs import ContextInputs
from relay.tls.contexts import build_steps
from relay.tls.generation import Generation

log = logging.getLogger(__name__)


def in_steps(found: Inspection, number: int) -> Generator[None, None, Prepared]:
    """Build the TLS contexts step by step; log the warnings."""
    revoked = yield from share_sets(found.revoked)
    context_inputs = ContextInputs(
        Files(found.contents),
        found.addresses,
        ciphers_checked=True,
        periods=found.periods,
        revoked=revoked,
        users=found.users,
    )
    for problem in found.warnings:
        log.warning("%s", problem)
        yield
    generation: Generation = yield from build_steps(found.config, number, context_inputs)
    return Prepared(
        config=found.config,
        generation=generation,
        identity=found.identity,
        slots=found.slots,
        certificates=found.certificates,
        entities=found.entities,
        description=found.description,
        password=found.password,
        periods=found.periods,
        unresolved=found.unresolved,
        digests=found.digests,
        fingerprints=found.fingerprints,
        others=found.others,
    )
