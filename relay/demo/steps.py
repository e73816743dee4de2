"""The demonstration: what a person would try first with a relay, step by step, and what was seen.

Each function of `STEPS` tries one thing on the `Stage` and returns what was seen, and whether it is what should be seen. It asks up to
three witnesses: the client's end, the backend's answer, and the relay's own access log or metrics.

Never: takes the relay's word where the client's can be had.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from rich.console import Console
from rich.text import Text

from relay.demo.stage import IMPOSTOR, NAME, WORKERS, Answer, Stage, StepError, wait_until
from relay.errors import Reason, Side

OTHER_CLIENTS = tuple(
    f"127.0.0.{last}" for last in range(2, 14)
)  # the whole of 127/8 is loopback on Linux


@dataclass(frozen=True, slots=True)
class Shown:
    """What a step saw, line by line, and whether it is what should be seen."""

    ok: bool
    seen: tuple[str, ...]


# The steps. Each function's docstring is its title.


def show_request(stage: Stage) -> Shown:
    """A request with a client certificate is answered."""
    answer = stage.ask("client")
    line = stage.logged(answer)
    ok = (
        answer.backend in WORKERS
        and answer.lines.get("client certificate it saw") == "CN=demo gateway machine"
        and line["subject"] == "CN=alice"
    )
    return Shown(
        ok,
        (
            f"client:  {answer.client} shows CN=alice, gets {answer.backend or answer.refused}",
            f"backend: {answer.backend} with {answer.lines.get('its certificate')}, saw {answer.lines.get('client certificate it saw')}",
            f"relay:   {line['tls_version']} {line['cipher']} from {line['subject']}, {line['outbound_tls_version']} {line['outbound_cipher']} to {line['backend']}",
        ),
    )


def show_stickiness(stage: Stage) -> Shown:
    """The same client stays with its backend, other clients spread."""
    same = [stage.ask("client").backend for _ in range(6)]
    others = {source: stage.ask("client", source=source).backend for source in OTHER_CLIENTS}
    again = {source: stage.ask("client", source=source).backend for source in OTHER_CLIENTS}
    spread = {name: list(others.values()).count(name) for name in WORKERS}
    return Shown(
        len(set(same)) == 1
        and same[0] in WORKERS
        and others == again
        and set(others.values()) <= set(WORKERS)
        and len(set(others.values())) > 1,
        (
            f"127.0.0.1, six connections: {' '.join(each or 'refused' for each in same)}",
            f"{len(others)} other addresses: {', '.join(f'{count} to {name}' for name, count in spread.items())}; the second time {'the same' if others == again else 'others'}",
        ),
    )


def _show_refusal(stage: Stage, reason: Reason, answer: Answer) -> Shown:
    line = stage.logged(answer)
    return Shown(
        bool(answer.refused) and not answer.lines and line["reason"] == reason,
        (
            f"client:  {answer.client} is refused: {answer.refused}"
            if answer.refused
            else f"client:  {answer.client} was answered by {answer.backend}",
            f"relay:   {line['reason']}, {line['side']} side, {_certificate_in(line)}",
            f"remedy:  {line['remedy']}",
        ),
    )


def _certificate_in(line: dict[str, Any]) -> str:
    """Whose certificate a refusal is about: a backend's is told in the detail, with what is wrong."""
    if line["side"] == Side.OUTBOUND:
        return str(line["detail"])
    return f"{line['subject']} issued by {line['issuer']}" if line["subject"] else "no certificate"


def show_no_certificate(stage: Stage) -> Shown:
    """A client without a certificate is refused."""
    return _show_refusal(stage, Reason.NO_CERTIFICATE, stage.ask())


def show_foreign_certificate(stage: Stage) -> Shown:
    """A client with a certificate of a foreign CA is refused."""
    return _show_refusal(stage, Reason.UNKNOWN_CA, stage.ask("foreign"))


def show_wrong_backend(stage: Stage) -> Shown:
    """A backend with the wrong certificate is refused."""
    return _show_refusal(stage, Reason.BACKEND_WRONG_NAME, stage.ask("client", name=IMPOSTOR))


def show_failover(stage: Stage) -> Shown:
    """A backend is killed and the traffic moves on."""
    before = stage.ask("client")
    if before.backend not in WORKERS:
        raise StepError(f"no backend answered before one was killed: {before.refused}")
    stage.kill_backend(before.backend)
    after = [stage.ask("client") for _ in range(3)]
    lines = [stage.logged(answer) for answer in after]
    return Shown(
        all(answer.backend in WORKERS and answer.backend != before.backend for answer in after),
        (
            f"{before.backend} answered 127.0.0.1, and was killed",
            *(
                f"next:    {answer.backend or answer.refused} (the relay chose it by {line['why']})"
                for answer, line in zip(after, lines, strict=True)
            ),
        ),
    )


def show_metrics(stage: Stage) -> Shown:
    """The metrics say the same."""
    expected: dict[str, Callable[[float], bool]] = {
        f'relay_handshakes_total{{result="{Reason.NO_CERTIFICATE}",side="inbound"}}': lambda count: (
            count == 1
        ),
        f'relay_handshakes_total{{result="{Reason.UNKNOWN_CA}",side="inbound"}}': lambda count: (
            count == 1
        ),
        f'relay_handshakes_total{{result="{Reason.BACKEND_WRONG_NAME}",side="outbound"}}': lambda count: (
            count == 1
        ),
        f'relay_connections_total{{listener="https",route="{IMPOSTOR}"}}': lambda count: count == 1,
        f'relay_connections_total{{listener="https",route="{NAME}"}}': lambda count: (
            count == stage.connections - 1
        ),
    }

    def agree() -> dict[str, float] | None:
        values = stage.metrics()
        failovers = sum(
            value
            for key, value in values.items()
            if key.startswith("relay_backend_selected_total") and 'why="failover"' in key
        )
        seen = {key: values.get(key, 0.0) for key in expected}
        ok = failovers >= 1 and all(right(seen[key]) for key, right in expected.items())
        latest.clear()
        latest.update(
            seen
            | {
                key: value
                for key, value in values.items()
                if value
                and key.startswith(("relay_sessions_closed_total", "relay_backend_selected_total"))
            }
        )
        return latest if ok else None

    latest: dict[str, float] = {}
    try:
        ok = bool(wait_until("the metrics agree", agree))
    except StepError:
        ok = False
    return Shown(ok, tuple(f"{key} {value:g}" for key, value in latest.items()))


STEPS: tuple[Callable[[Stage], Shown], ...] = (
    show_request,
    show_stickiness,
    show_no_certificate,
    show_foreign_certificate,
    show_wrong_backend,
    show_failover,
    show_metrics,
)


def run_demo(once: bool, port: int) -> int:
    """Run the demonstration on `port` (0: any); 0 when every step showed what it should, else 1.

    With `once` it ends after the last step, else it stays until Ctrl-C. Raises StartupError when something cannot be started.
    """
    console = Console(highlight=False, soft_wrap=True)
    console.print("Making certificates, starting three backends and a relay with two workers ...")
    with _terminated_like_interrupted(), Stage(port) as stage:
        console.print(
            f"The relay accepts on 127.0.0.1:{stage.port}; its metrics are at http://{stage.admin}/metrics; all files are in {stage.directory}\n",
            markup=False,
        )
        failed = run_steps(console, stage)
        if failed:
            console.print(
                Text(
                    f"{len(failed)} of {len(STEPS)} steps did not show what they should: {'; '.join(failed)}",
                    style="bold red",
                )
            )
        else:
            console.print(
                Text(f"All {len(STEPS)} steps showed what they should.", style="bold green")
            )
        if not once and not _stay(console, stage):
            failed.append("the relay ended by itself")
    return 1 if failed else 0


def run_steps(
    console: Console, stage: Stage, steps: Sequence[Callable[[Stage], Shown]] = STEPS
) -> list[str]:
    """Run and show steps; the titles of the steps that failed."""
    failed = []
    good, bad = ("✔", "✘") if console.encoding.lower().startswith("utf") else ("ok", "FAILED")
    for number, step in enumerate(steps, 1):
        title = f"{number}. {(step.__doc__ or '').rstrip('.')}"
        try:
            shown = step(stage)
        except (StepError, OSError) as error:
            shown = Shown(ok=False, seen=(str(error),))
        if not shown.ok:
            failed.append(title)
        console.print(
            Text.assemble(
                (good, "bold green") if shown.ok else (bad, "bold red"), " ", (title, "bold")
            )
        )
        for line in shown.seen:
            console.print(Text(f"    {line}"))
        console.print()
    return failed


def _stay(console: Console, stage: Stage) -> bool:
    """Invite to try it by hand, and wait for Ctrl-C; False when the relay ended first."""
    back = stage.revive()
    where, port = stage.directory, stage.port
    console.print(f"\nTry it yourself{f' ({back} is back)' if back else ''}:\n", markup=False)
    for line in (
        f"curl --cacert {where}/ca.pem --cert {where}/client.pem --key {where}/client.key https://{NAME}:{port}/",
        f"curl --cacert {where}/ca.pem https://{NAME}:{port}/",
        f"curl --cacert {where}/ca.pem --cert {where}/foreign.pem --key {where}/foreign.key https://{NAME}:{port}/",
        f"openssl s_client -connect 127.0.0.1:{port} -servername {NAME} -CAfile {where}/ca.pem -cert {where}/client.pem -key {where}/client.key",
        f"tail -f {where}/access.log",
        f"curl http://{stage.admin}/metrics",
        f"http://{stage.admin}/balancer-manager in a browser",
    ):
        console.print(Text(f"    {line}"))
    console.print("\nCtrl-C ends everything and removes the files.")
    try:
        code = stage.relay.wait()
    except KeyboardInterrupt:
        console.print()
        return True
    console.print(Text(f"The relay ended with {code}; see the lines above.", style="bold red"))
    return False


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM and SIGHUP (a closed terminal) clean up as Ctrl-C does."""

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
