"""The load generator: opens mutual-TLS connections to a gateway, keeps them busy as a job says, checks every answer byte by byte.

Run as `python -m bench.load`: per line of stdin one job (`Job` as JSON); it warms up, prints a `ready` line, waits for a line, does the measured part,
prints a `done` line, and for `idle` holds until a third line. Nothing is in flight when `done` is printed, so a gateway's CPU time between the two lines
belongs to exactly the units reported.
Never: counts a unit whose bytes were not all as they must be.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import sys
from dataclasses import asdict
from pathlib import Path

from bench import tls
from bench.job import Job
from bench.paced import MODES
from bench.pki import Pki
from bench.traffic import StalledError


def say(event: str, **fields: object) -> None:
    """One JSON line to the harness."""
    print(json.dumps({"event": event, **fields}), flush=True)


def await_line() -> str:
    """Blocks for the harness's next line; ends the process when there is none, so that no load outlives it."""
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return line


def run_job(job: Job) -> None:
    """Runs one job to its `done` line."""
    context = tls.open_client_context(
        Pki(Path(job.pki)),
        server_name=job.server_name,
        same_cipher=job.same_cipher,
        certificate=job.certificate,
    )
    if job.nice:
        os.nice(job.nice)
    traffic = MODES[job.mode](job, context, select.epoll())
    try:
        traffic.warm_up()
        say("ready", errors=dict(traffic.tally.errors))
        await_line()
        traffic.measure()
    except (StalledError, tls.TlsError) as failure:
        traffic.tally.errors[str(failure)] += 1
    tally = traffic.tally
    tally.latencies_us.sort()
    say("done", **(asdict(tally) | {"errors": dict(tally.errors)}))
    if job.mode == "idle":
        await_line()
    traffic.close()
    say("closed")


def main() -> None:
    """Takes jobs until stdin ends."""
    gc.disable()
    # The harness has gone, or has given this run up: nothing to report, and to nobody.
    with contextlib.suppress(BrokenPipeError):
        while True:
            run_job(Job(**json.loads(await_line())))
            gc.collect()
    os._exit(0)


if __name__ == "__main__":
    main()
