"""Whether this version of the program can take over from the one that runs.

It runs in a child of the running supervisor, with the command of that one: `relay
upgrade` starts it. It imports every module, reads and checks the configuration as a
start does, builds all TLS contexts, and opens the addresses that are new.

Never: changes anything that the running relay uses.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from functools import partial
from pathlib import Path

import relay
from relay.config.model import Config
from relay.errors import StartupError
from relay.supervisor.handover import FORMAT, State
from relay.supervisor.inspection import PrepareRequest
from relay.supervisor.kept_inspection import inspect_and_keep
from relay.supervisor.listen_addresses import ListenAddress, listen_addresses
from relay.supervisor.listening import open_single_listener
from relay.supervisor.prepare import finish


def check(config_path: Path, state: State, *, strict: bool) -> int:
    """Write a line that says that it can take over. Returns the exit code.

    Raises ConfigError and StartupError.
    """
    _import_all()
    prepared = finish(
        PrepareRequest(config_path, strict=strict), work=partial(inspect_and_keep, state)
    )
    _check_state_dir(prepared.config, state)
    _check_addresses(prepared.config, state)
    sys.stdout.write(json.dumps({"handover": FORMAT, "version": relay.__version__}) + "\n")
    sys.stdout.flush()
    return 0


def _import_all() -> None:
    """Import every module: many are imported only when they are needed."""
    for found in pkgutil.walk_packages(relay.__path__, "relay."):
        if found.name != "relay.__main__":
            try:
                importlib.import_module(found.name)
            except Exception as error:  # noqa: BLE001  a module may raise anything
                what = f"{found.name} cannot be imported: {type(error).__name__}: {error}"
                raise StartupError(what, "install this version again, completely") from None


def _check_state_dir(config: Config, state: State) -> None:
    if str(config.relay.state_dir) != state["state_dir"]:
        raise StartupError(
            f"relay.state_dir is {config.relay.state_dir} now, and the running relay has"
            f" {state['state_dir']}",
            "set it back, or restart the relay",
        )


def _check_addresses(config: Config, state: State) -> None:
    """Open every address that the running relay does not have."""
    held = {ListenAddress(one["listener"], one["address"]).key for one in state["listeners"]}
    for one in listen_addresses(config):
        if one.key not in held:
            open_single_listener(one.where, one.address, freebind=one.freebind).close()
    admin = state["admin"]
    listen = config.admin.listen
    if listen and (admin is None or listen != admin["listen"]) and not listen.startswith("unix:"):
        open_single_listener("admin.listen", listen).close()
