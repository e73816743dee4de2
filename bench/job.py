"""The messages between the harness and a load generator: a job and its result.

Never: does anything; both sides import it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from bench.pki import GATEWAY_NAME


@dataclass(frozen=True, slots=True)
class Job:
    """What to do. Sizes are in bytes, times in seconds.

    `seconds` bounds the measured part, and so does `units` unless it is 0. `record` is
    how much of a stream its sender writes at once.
    """

    mode: str
    address: str
    port: int
    pki: str
    connections: int
    seconds: float
    size: int = 64
    record: int = 16_384
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
    """The result of the measured part. Only some modes measure `latencies_us`."""

    units: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    handshakes: int = 0
    resumed: int = 0
    wall_s: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    latencies_us: list[float] = field(default_factory=list)
    negotiated: dict[str, object] | None = None
