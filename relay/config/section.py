"""What every section of the configuration has in common, and shared sections.

Never: compares one key with another (see `config.rules`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from relay.config.values import DnsNames, FilePaths, Seconds, Strings

# A table, or false for none: None stands for false.
Off = BeforeValidator(lambda value: None if value is False else value)


class Section(BaseModel):
    """Types are strict, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, str_strip_whitespace=True)


class Keepalive(Section):
    """`keepalive`: when TCP asks a silent peer whether it is still there (tcp(7))."""

    idle_s: Annotated[int, Field(ge=1, le=32_767)] = Field(
        60, description="How long the peer is silent before TCP asks for the first time."
    )
    interval_s: Annotated[int, Field(ge=1, le=32_767)] = Field(
        10, description="The time between two questions."
    )
    count: Annotated[int, Field(ge=1, le=127)] = Field(
        6, description="Questions without an answer; has no effect if user_timeout_s is not 0."
    )


class Crl(Section):
    """`crl`: revocation lists of the CAs of a route or a pool, and what they decide."""

    files: FilePaths = ()
    urls: Strings = ()
    from_certificates: bool = False
    hosts: DnsNames = ()
    missing: Literal["refuse", "accept"] = "refuse"
    expired: Literal["refuse", "grace"] = "refuse"
    grace_s: Seconds = 86_400
