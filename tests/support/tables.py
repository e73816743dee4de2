"""Listeners, routes and pools as TOML; a test can choose every part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from tests.support.gateway import render_value
from tests.support.pki import BACKEND_NAME, Files, Pki


def _lines(keys: dict[str, Any]) -> str:
    return "".join(f"{key} = {render_value(value)}\n" for key, value in keys.items())


def listener_table(
    *routes: str, name: str = "https", listen: Sequence[str] = ("127.0.0.1:0",)
) -> str:
    """`[[listener]]` with its routes; the first match wins."""
    return f"[[listener]]\n{_lines({'name': name, 'listen': list(listen)})}\n" + "".join(routes)


def route_table(
    pki: Pki,
    pool: str = "main",
    *,
    files: Files | None = None,
    client_ca: Path | None = None,
    **more: Any,
) -> str:
    """`[[listener.route]]`.

    By default it is for every name, with the good certificate and the test CA.
    """
    shown = files or pki.gateway
    keys = {
        "pool": pool,
        "certificate": shown.certificate,
        "private_key": shown.key,
        "client_ca": client_ca or pki.ca,
    }
    return f"[[listener.route]]\n{_lines({**keys, **more})}\n"


def pool_table(
    pki: Pki,
    addresses: Iterable[str],
    *,
    name: str = "main",
    files: Files | None = None,
    backend_ca: Path | None = None,
    backend_name: str = BACKEND_NAME,
    routes: Sequence[str] = (),
    **more: Any,
) -> str:
    """`[pool.NAME]` with backends called w1, w2, …, or by these routes."""
    shown = files or pki.machine
    keys = {
        "machine_certificate": shown.certificate,
        "machine_key": shown.key,
        "backend_ca": backend_ca or pki.ca,
    }
    backends = "".join(
        f"[[pool.{name}.backend]]\n"
        f"{_lines({'route': route, 'address': address, 'name': backend_name})}\n"
        for route, address in zip(routes or map("w{}".format, count(1)), addresses, strict=False)
    )
    return f"[pool.{name}]\n{_lines({**keys, **more})}\n{backends}"
