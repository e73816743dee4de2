"""What the scoreboard says about a backend: its overrides, and when it came back.

Never: trusts a cell. Another process may have written anything, so a value that is not
possible counts as the default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from relay.core.candidates import CandidateStatus, Mode
from relay.core.overrides import MAX_WEIGHT
from relay.shared.scoreboard import Cells, monotonic_ms

if TYPE_CHECKING:
    from relay.worker.backend import BackendState

# By the value of a MODE_OVERRIDE cell; 0 is as configured.
_MODES: Final = (None, Mode.ENABLED, Mode.DRAIN, Mode.DISABLED, Mode.STANDBY)


def read_status(shared: Cells, backend: BackendState) -> CandidateStatus:
    """The backend's status for the balancer."""
    return CandidateStatus(
        _mode(shared[backend.cell_mode]),
        _weight(shared[backend.cell_weight]),
        _returned_at(shared[backend.cell_returned]),
    )


def _mode(code: int) -> Mode | None:
    return _MODES[code] if 0 <= code < len(_MODES) else None


def _weight(value: int) -> int | None:
    return value if 0 < value <= MAX_WEIGHT else None


def _returned_at(value_ms: int) -> float | None:
    return value_ms / 1000 if 0 < value_ms <= monotonic_ms() + 1000 else None
