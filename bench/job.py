"""The values that go between the harness and a load generator: what to do, and what happened.

Never: does anything; both sides import it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from bench.pki import GATEWAY_NAME


@dataclass(frozen=True, slots=True)
class Job:
    """What to do; sizes in bytes, times in seconds. `units` bounds the measured part where it is not 0, `seconds` always does."""

    mode: str
    address: str
    port: int
    pki: str
    connections: int
    seconds: float
    size: int = 64
    units: int = 0
    rate: float = 0.0
    resume: bool = False
    exact: bool = True
    same_cipher: bool = True
    certificate: bool = True
    warm_units: int = 4
    nice: int = 0
    cookie: str = ""
    server_name: str = GATEWAY_NAME


@dataclass(slots=True)
class Tally:
    """What happened in the measured part; errors by text. `latencies_us` only where the mode measures them."""

    units: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    handshakes: int = 0
    resumed: int = 0
    wall_s: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    latencies_us: list[float] = field(default_factory=list)
    negotiated: dict[str, object] | None = None
