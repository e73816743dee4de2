"""`python -m bench.endurance`: reloads, upgrades, restarts and kills under load.

New clients come at a steady rate, each with a payload of its own, and long transfers
send records without an end. Every byte that comes back is compared. Meanwhile the
gateway is reloaded, upgraded, restarted, or one of its workers is killed. It prints how
many clients were served, how many were not and why, how long they took, and how memory
and open files of the gateway grew.

A client that failed counts as lost, unless `bench.endurance_excuses` explains it. A
client that neither finished nor failed is lost too. What clients, access log and
metrics have counted must be equal: `bench.endurance_counts`. Whatever was planned and
not done is a problem, and so is each answer of `/readyz` other than 200.

On a busy machine, events take longer, and the run does: by 200 seconds at most.

Never: runs on after that, plus the patience of the clients.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import psutil

from bench import facts
from bench.children import BenchError, Child
from bench.endurance_counts import growing
from bench.endurance_excuses import Outage
from bench.endurance_gateways import EndurableGateway, RelayGateway
from bench.endurance_judgement import compare, judge
from bench.endurance_load import PATIENCE_S, LoadJob
from bench.endurance_plan import Echo, Plan, Seen, events_of, parse_events
from bench.endurance_report import growth, merge, table
from bench.gateways import GATEWAYS, Place
from bench.other_gateways import OtherGateway
from bench.pki import GATEWAY_NAME, create_pki
from bench.running import raise_file_limit
from bench.strangers import Strangers, StrangersChild

SAMPLE_S = 1.0
_SETTLE_S = 2.0
_EVENT_S = 200.0  # how much longer the last ones may take on a busy machine
_RESTART_S = 30.0  # for the transfers that must end first


class Run:
    """One run of a plan against one gateway."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self._plan = plan
        self._directory = directory
        self._pki = directory / "pki"
        self._over = threading.Event()
        self._second: Echo | None = None
        self.seen = Seen()

    def run(self) -> dict[str, Any]:
        """Run it, and return the report."""
        plan = self._plan
        self._pki.mkdir()
        create_pki(self._pki)
        with ExitStack() as stack:
            backend = stack.enter_context(Echo(self._pki))
            if "flap" in plan.events:
                self._second = Echo(self._pki)
                stack.callback(self._end_second)
            second_port = self._second.port if self._second is not None else 0
            place = Place(self._directory / plan.gateway, self._pki, backend.port, workers=2)
            gateway: EndurableGateway = (
                RelayGateway(place, second_port, _RESTART_S if "restart" in plan.events else 5.0)
                if plan.gateway == "relay"
                else OtherGateway(plan.gateway, place)
            )
            try:
                results = self._drive(gateway)
                time.sleep(_SETTLE_S)  # the last lines of the access log
                return self._report(gateway, results)
            finally:
                gateway.stop()

    def _drive(self, gateway: EndurableGateway) -> list[dict[str, Any]]:
        plan = self._plan
        longest_s = plan.seconds + _EVENT_S + PATIENCE_S
        jobs = [
            LoadJob(gateway.port, str(self._pki), plan.rate / plan.processes, 0, longest_s)
            for _ in range(plan.processes if plan.rate else 0)
        ]
        if plan.transfers:
            job = LoadJob(gateway.port, str(self._pki), 0, plan.transfers, longest_s)
            jobs.append(replace(job, transfer_s=plan.transfer_s))
        loads = [Child("bench.endurance_load") for _ in jobs]
        strangers: list[StrangersChild] = []
        try:
            for load, job in zip(loads, jobs, strict=True):
                load.tell(asdict(job))
                load.hear(2 * PATIENCE_S)
            threads = [
                threading.Thread(target=self._sample, args=(gateway,), name="sampling"),
                *(
                    threading.Thread(target=self._repeat, args=(name, count, gateway), name=name)
                    for name, count in plan.events.items()
                ),
            ]
            strangers = self._strangers(gateway)
            for load in loads:
                load.tell({})
            for each in strangers:
                each.go()
            for thread in threads:
                thread.start()
            if isinstance(gateway, RelayGateway):
                gateway.ready.start()
            self._wait_for(threads[1:])
            for load in loads:
                load.tell({})
            results = [load.hear(2 * PATIENCE_S) for load in loads]
            for thread in threads:
                thread.join(_EVENT_S)
                if thread.is_alive():
                    self.seen.problems.append(f"{thread.name} did not end")
            if isinstance(gateway, RelayGateway):
                gateway.ready.stop()
            for each in strangers:
                for what, count in each.stop().items():
                    self.seen.strangers[what] = self.seen.strangers.get(what, 0) + count
        finally:
            self._over.set()
            for each in strangers:
                each.__exit__(None, None, None)
            for load in loads:
                load.__exit__(None, None, None)
        return results

    def _wait_for(self, events: list[threading.Thread]) -> None:
        """Wait until the time is over, and longer if an event is still to be done."""
        began_at = time.monotonic()
        time.sleep(self._plan.seconds)
        until_at = time.monotonic() + _EVENT_S
        for event in events:
            event.join(max(0.0, until_at - time.monotonic()))
        self._over.set()
        self.seen.seconds = time.monotonic() - began_at

    def _strangers(self, gateway: EndurableGateway) -> list[StrangersChild]:
        """Clients that never finish: silent ones, and hellos that get no further."""
        plan, found = self._plan, []
        for kind in ("silent", "hello") if plan.strangers else ():
            job = Strangers(
                "127.0.0.1",
                gateway.port,
                GATEWAY_NAME,
                kind,
                plan.strangers / 2,
                plan.seconds + _EVENT_S,
                keep=100,
            )
            found.append(StrangersChild(job))
        return found

    def _repeat(self, name: str, count: int, gateway: EndurableGateway) -> None:
        """Do one thing again and again, evenly spread over the time."""
        act = partial(self._flap, gateway) if name == "flap" else events_of(gateway)[name]
        began_at = time.monotonic()
        step_s = 0.9 * self._plan.seconds / count
        for number in range(count):
            if self._over.wait(max(0.0, began_at + (number + 0.5) * step_s - time.monotonic())):
                self.seen.problems.append(f"{name}: only {number} of {count} in this time")
                return
            self._do(name, act)

    def _flap(self, gateway: EndurableGateway) -> None:
        """The second backend goes away for a second, with all its sessions."""
        if self._second is not None:
            port, began_at = self._second.port, time.time()
            self._end_second()
            gateway.excuses.outages.append(Outage(began_at, time.time()))
            self._over.wait(1.0)
            self._second = Echo(self._pki, port)

    def _end_second(self) -> None:
        if self._second is not None:
            self._second.__exit__(None, None, None)

    def _do(self, name: str, act: Callable[[], None]) -> None:
        began_at = time.monotonic()
        try:
            act()
        except Exception as error:  # noqa: BLE001  (part of the report)
            self.seen.problems.append(f"{name}: {type(error).__name__}: {error}"[:300])
        else:
            self.seen.done[name] = self.seen.done.get(name, 0) + 1
        took_s = time.monotonic() - began_at
        self.seen.longest_s[name] = max(self.seen.longest_s.get(name, 0.0), took_s)

    def _sample(self, gateway: EndurableGateway) -> None:
        began_at = time.monotonic()
        while not self._over.wait(SAMPLE_S):
            sample: dict[str, Any] = {"at_s": round(time.monotonic() - began_at, 1)}
            for role, processes in gateway.processes().items():
                try:
                    sample[f"{role}_kib"] = sum(_own_kib(each) for each in processes)
                    sample[f"{role}_files"] = sum(each.num_fds() for each in processes)
                except psutil.Error:
                    self.seen.missed_samples += 1
                    break  # one of them ends just now
            else:
                self.seen.samples.append(sample)

    # The report.

    def _report(self, gateway: EndurableGateway, results: list[dict[str, Any]]) -> dict[str, Any]:
        log, seen = gateway.logged(), self.seen
        short, long = (merge([each[kind] for each in results]) for kind in ("short", "long"))
        lost = sum(judge(each, gateway.excuses, log) for each in (short, long))
        grown = growth(seen.samples)
        report: dict[str, Any] = {"counted": {}}
        if isinstance(gateway, RelayGateway):
            report |= {"ready": dict(gateway.ready.answers), "errors": gateway.errors()}
            # The metrics begin anew at a restart.
            metrics = None if "restart" in self._plan.events else gateway.counts()
            report["counted"], differ = compare(gateway.excuses, log, metrics, short, long)
            seen.problems += differ
            broken = [f"{log.broken_lines} broken lines"] if log.broken_lines else []
            seen.problems += gateway.ready.failures + gateway.left_over() + broken
            seen.problems += growing(seen.samples, grown)
        return report | {
            "plan": asdict(self._plan),
            "seconds": round(seen.seconds, 1),
            "done": seen.done,
            "problems": seen.problems,
            "longest_s": {name: round(took, 2) for name, took in seen.longest_s.items()},
            "strangers": seen.strangers,
            "short": short,
            "long": long,
            "lost": lost,
            "growth": grown,
            "samples": seen.samples,
            "missed_samples": seen.missed_samples,
        }


def _own_kib(process: psutil.Process) -> int:
    """Memory of its own; shared pages would count twice."""
    return int(process.memory_full_info().uss // 1024)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--gateway",
    type=click.Choice(["relay", "haproxy", "nginx"]),
    default="relay",
    show_default=True,
)
@click.option("--events", default="reload=100", show_default=True, help="NAME=COUNT,…")
@click.option("--rate", default=100.0, show_default=True, help="New clients a second.")
@click.option("--transfers", default=200, show_default=True, help="Long transfers.")
@click.option("--seconds", type=click.FloatRange(1, 3600), default=120.0, show_default=True)
@click.option("--processes", default=2, show_default=True, help="Of the new clients.")
@click.option("--strangers", default=0.0, help="Clients a second that never finish a handshake.")
@click.option("--transfer-s", default=0.0, help="How long each transfer lasts; 0: to the end.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False))
def main(*, json_file: Path | None, events: str, **options: Any) -> None:
    """Count the clients that a gateway loses while it is reloaded, upgraded or killed.

    Exit status 1: one was lost or changed, or something could not be done.
    """
    plan = Plan(events=parse_events(events), **options)
    if GATEWAYS[plan.gateway].program() is None:
        raise click.ClickException(f"{plan.gateway} is not installed")
    if plan.gateway != "relay" and set(plan.events) - {"reload"}:
        raise click.UsageError(f"{plan.gateway} can only be reloaded")
    raise_file_limit()
    with tempfile.TemporaryDirectory(prefix="endurance-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        try:
            report = Run(plan, directory).run()
        except BenchError as failure:
            raise click.ClickException(str(failure)) from None
    report["environment"] = facts.describe_machine()
    print(table(report))
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1))
    if report["lost"] or report["problems"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
