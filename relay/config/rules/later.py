"""Refuses keys that the configuration has and this version does not support yet.

Never: refuses a key that is left at its default.
"""

from __future__ import annotations

from relay.config.explain import quoted
from relay.config.key_path import listener_paths
from relay.config.model import Config
from relay.config.rules.problem_list import LATER, ProblemList
from relay.config.section import Section

_LISTENER = (
    "per_client_rate",
    "per_client_burst",
    "per_client_prefix_v4",
    "per_client_prefix_v6",
    "log_probes",
    "probes_from",
)


def check_later(found: ProblemList, config: Config) -> None:
    """Every key of this configuration that is not supported yet."""
    paths = listener_paths([each.name for each in config.listener])
    for where, listener in zip(paths, config.listener, strict=True):
        _refuse(found, where, listener, _LISTENER)


def _refuse(found: ProblemList, where: str, section: Section, keys: tuple[str, ...]) -> None:
    for key in keys:
        value = getattr(section, key)
        if key in section.model_fields_set and value != type(section).model_fields[key].default:
            shown = quoted(value) if isinstance(value, str) else "this setting"
            found.add(f"{where}.{key}", f"{shown} is {LATER}", "remove it")
