"""`relay demo`: starts the lab, runs the steps, then offers commands to try by hand.

Never: leaves a process behind, or a file that was not asked for.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.text import Text

from relay.demo.kept import how_to_start
from relay.demo.lab import NAME, Lab
from relay.demo.steps import STEPS, run_steps


def run_demo(once: bool, port: int, keep: Path | None = None) -> int:
    """Run the demonstration on `port` (0: any); 0 when all steps passed, otherwise 1.

    With `once` it ends after the last step, otherwise at Ctrl-C. The files stay in
    `keep`, if it is given. Raises StartupError when a process cannot be started.
    """
    console = Console(highlight=False, soft_wrap=True)
    console.print("Making certificates, starting three backends and a relay with two workers ...")
    with _signals_as_interrupt(), Lab(port, keep) as lab:
        console.print(
            f"The relay listens on 127.0.0.1:{lab.port}. "
            f"Metrics: http://{lab.admin}/metrics. Files: {lab.directory}\n",
            markup=False,
        )
        failed = run_steps(console, lab)
        if failed:
            text = f"{len(failed)} of {len(STEPS)} steps failed: {'; '.join(failed)}"
            console.print(Text(text, style="bold red"))
        else:
            console.print(Text(f"All {len(STEPS)} steps passed.", style="bold green"))
        if keep is not None:
            lab.leave()
        if not once and not _stay(console, lab):
            failed.append("the relay ended by itself")
    if keep is not None:
        console.print(f"\nThe files stay in {lab.directory}. Start it again:\n", markup=False)
        for line in how_to_start(lab.directory, lab.port):
            console.print(Text(f"    {line}"))
    return 1 if failed else 0


def _stay(console: Console, lab: Lab) -> bool:
    """Print commands to try, and wait for Ctrl-C; False when the relay ended first."""
    restarted = lab.restart_killed()
    where, port = lab.directory, lab.port
    note = f" ({restarted} runs again)" if restarted else ""
    console.print(f"\nTry it yourself{note}:\n", markup=False)
    curl = f"curl --cacert {where}/ca.pem"
    s_client = (
        f"openssl s_client -connect 127.0.0.1:{port} -servername {NAME} -CAfile {where}/ca.pem"
    )
    for line in (
        f"{curl} --cert {where}/client.pem --key {where}/client.key https://{NAME}:{port}/",
        f"{curl} https://{NAME}:{port}/",
        f"{curl} --cert {where}/foreign.pem --key {where}/foreign.key https://{NAME}:{port}/",
        f"{s_client} -cert {where}/client.pem -key {where}/client.key",
        f"tail -f {where}/access.log",
        f"curl http://{lab.admin}/metrics",
        f"http://{lab.admin}/balancer-manager in a browser",
    ):
        console.print(Text(f"    {line}"))
    end = "ends everything." if lab.keeps else "ends everything and removes the files."
    console.print(f"\nCtrl-C {end}")
    try:
        code = lab.relay.wait()
    except KeyboardInterrupt:
        console.print()
        return True
    text = f"The relay ended with status {code}; the reason is in the lines above."
    console.print(Text(text, style="bold red"))
    return False


@contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """Make SIGTERM and SIGHUP (a closed terminal) clean up like Ctrl-C."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
