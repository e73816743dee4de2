"""The value `Prepared`: a configuration and all that is made from it before a fork.

Related modules: `inspection` reads and checks the configuration in a child process,
`prepare` runs that child and builds this value, `check` is `relay check`.

Never: changes anything that a running generation uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from relay.config.model import Config, Relay
from relay.core.fleet_view import Rules
from relay.errors import StartupError
from relay.files import Fingerprint
from relay.shared.entities import Entities
from relay.shared.scoreboard import Scoreboard
from relay.supervisor.privileges import Identity
from relay.supervisor.renewal_check import InUse, Renewed, Running
from relay.supervisor.scoreboards import Scoreboards
from relay.supervisor.set_reading import Digests
from relay.tls.certificates.inventory import CertificateInfo
from relay.tls.certificates.validity_periods import ValidityPeriod
from relay.tls.generation import Generation


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A configuration with all that was made from it, ready for the first fork."""

    config: Config
    generation: Generation
    identity: Identity
    slots: int
    certificates: tuple[CertificateInfo, ...]
    entities: Entities  # rows of the scoreboard
    description: bytes  # JSON for readers of the scoreboard
    password: str = field(default="", repr=False)
    periods: Mapping[str, ValidityPeriod] = field(default_factory=dict)  # by key path
    unresolved: Mapping[str, str] = field(default_factory=dict)  # host name: error
    digests: Digests = field(default_factory=dict)  # of the files in use
    fingerprints: Mapping[Path, Fingerprint] = field(default_factory=dict)
    others: Mapping[tuple[Path, int], bytes] = field(default_factory=dict)  # see `Running`
    withheld: Digests = field(default_factory=dict)  # see `InUse`


def running(prepared: Prepared) -> Running:
    """A preparation's view of what runs."""
    in_use = InUse(prepared.generation, prepared.digests, prepared.certificates, prepared.withheld)
    return Running(in_use, prepared.others, prepared.identity, prepared.slots, prepared.password)


def without_files_of(prepared: Prepared, canary: Prepared) -> Prepared:
    """The same generation; certificates and CAs that a canary tries are not for it.

    Revocation lists and responses are: these must not be older than necessary.
    """
    withheld = {
        key: digests
        for key, digests in canary.digests.items()
        if key[0] in ("pair", "cas") and digests != prepared.digests.get(key, digests)
    }
    return replace(prepared, withheld=withheld)


def renewed(prepared: Prepared, found: Renewed) -> Prepared:
    """The same generation after its objects were renewed."""
    return replace(
        prepared,
        certificates=found.certificates,
        description=found.description,
        periods={**prepared.periods, **found.renewal.periods},
        digests={**prepared.digests, **found.digests},
        fingerprints={**prepared.fingerprints, **found.fingerprints},
    )


def configured_rules(rules: Rules, relay: Relay) -> Rules:
    """The rules with the limits of this configuration."""
    return replace(
        rules,
        drain_timeout_s=relay.drain_timeout_s,
        reload_drain_s=relay.reload_drain_s,
        old_generations=relay.old_generations,
    )


def begin_scoreboard(scoreboards: Scoreboards, prepared: Prepared) -> Scoreboard:
    """Create the counters of a generation. Raises StartupError when memory is short."""
    number = prepared.generation.number
    try:
        return scoreboards.begin(number, prepared.entities, prepared.slots)
    except OSError as error:
        raise StartupError(
            f"no memory for the counters of generation {number}: {error.strerror or error}",
            "give the relay more memory or open files, or configure fewer backends and workers",
        ) from None
