"""The load generator: a client over mutual TLS that checks every byte.

`python -m bench.load` reads jobs (`Job` as JSON) from stdin, one per line. For each it
warms up, prints a `ready` line, waits for a line, does the measured part, and prints a
`done` line. In the mode `idle` it then waits for a third line. Nothing is in flight
when it prints `done`, so the gateway's CPU time between `ready` and `done` belongs to
exactly the units reported.

Never: counts a unit with a wrong byte.
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
    """Send one JSON line to the harness."""
    print(json.dumps({"event": event, **fields}), flush=True)


def await_line() -> str:
    """Wait for the harness's next line; end the process when stdin ends."""
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return line


def run_job(job: Job) -> None:
    """Run one job."""
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
    """Run jobs until stdin ends."""
    gc.disable()
    # The harness has ended: no process reads the result.
    with contextlib.suppress(BrokenPipeError):
        while True:
            run_job(Job(**json.loads(await_line())))
            gc.collect()
    os._exit(0)


if __name__ == "__main__":
    main()
