"""Facts of a run: machine, git revision, versions and TLS libraries of the gateways.

Never: guesses; a fact that cannot be read is an empty string.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from OpenSSL import SSL

from bench.gateways import Gateway

_ROOT = Path(__file__).resolve().parent.parent
_OPENSSL = re.compile(rb"(?:OpenSSL|LibreSSL|AWS-LC) \d+\.\d+\.\d+[a-z]*")
_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)*[^\s/,]*")
# Libraries that may have a version string. BoringSSL, which Envoy contains, has none.
_LIBRARY = re.compile(r"libcrypto|_rust|libssl")


def describe_machine() -> dict[str, Any]:
    """The machine and this checkout."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    revision = _output(["git", "-C", str(_ROOT), "rev-parse", "--short=12", "HEAD"]).strip()
    changed = _output(
        ["git", "-C", str(_ROOT), "status", "--porcelain", "--", "relay", "bench"]
    ).strip()
    return {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "revision": revision + ("+changes" if changed else ""),
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "congestion_control": _congestion_control(),
        "python": platform.python_version(),
        "load_openssl": SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode(),
    }


def _congestion_control() -> str:
    """Of new TCP connections. It decides whose CPU time a segment on loopback costs."""
    try:
        return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    except OSError:
        return ""


def describe_gateway(gateway: Gateway) -> dict[str, str]:
    """Version of an installed gateway."""
    program = gateway.program()
    if program is None:
        return {"version": ""}
    text = _output([program, *gateway.version])
    found = _VERSION.search(text.replace(sys.version.split()[0], ""))
    return {"version": found.group() if found else ""}


def loaded_tls(pids: list[int]) -> str:
    """The TLS library that the processes have mapped, by its version string."""
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        except OSError:
            continue
        files = {
            line.split(maxsplit=5)[5] for line in lines if line.count("/") and _LIBRARY.search(line)
        }
        if any("envoy" in line for line in lines):
            return "BoringSSL"
        for file in sorted(files):
            try:
                found = _OPENSSL.search(Path(file).read_bytes())
            except OSError:
                continue
            if found:
                return found.group().decode()
    return ""


def own_tls(gateway: Gateway) -> str:
    """The TLS library of this Python's relay, whose processes only root may inspect."""
    found = _OPENSSL.search(SSL.SSLeay_version(SSL.SSLEAY_VERSION))
    return found.group().decode() if found and gateway.name == "relay" else ""


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, check=False, cwd=_ROOT)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    # nginx and stunnel print their version on stderr. Ignore a failed command's output.
    return (done.stdout + done.stderr).decode(errors="replace") if done.returncode == 0 else ""
