"""The steps of the demonstration.

Each function of `STEPS` tries one thing and returns what it saw, and whether that is
correct. It compares up to three sources: the client, the backend's answer, and the
relay's access log or metrics.

Never: relies on the relay's word alone where the client can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from relay.demo.client import Answer, Client, StepError, wait_until
from relay.demo.lab import IMPOSTOR, NAME, WORKERS, Lab
from relay.errors import Reason, Side

# On Linux all of 127.0.0.0/8 is loopback.
OTHER_CLIENTS = tuple(f"127.0.0.{last}" for last in range(2, 14))


@dataclass(frozen=True, slots=True)
class StepResult:
    """Whether a step saw what it should, and the lines to print."""

    ok: bool
    lines: tuple[str, ...]


Step = Callable[[Lab, Client], StepResult]

# The steps. Each function's docstring is its title.


def show_request(_: Lab, client: Client) -> StepResult:
    """A request with a client certificate is answered."""
    answer = client.ask("client")
    line = client.logged(answer)
    seen = answer.lines.get("client certificate it saw")
    inbound = f"{line['tls_version']} {line['cipher']} from {line['subject']}"
    outbound = f"{line['outbound_tls_version']} {line['outbound_cipher']} to {line['backend']}"
    answered = f"is answered by {answer.backend}" if answer.backend else answer.refused
    return StepResult(
        answer.backend in WORKERS
        and seen == "CN=demo gateway machine"
        and line["subject"] == "CN=alice",
        (
            f"client:  {answer.client} presents CN=alice, {answered}",
            f"backend: {answer.backend} with {answer.lines.get('its certificate')}, saw {seen}",
            f"relay:   {inbound}, {outbound}",
        ),
    )


def show_stickiness(_: Lab, client: Client) -> StepResult:
    """The same client stays with its backend, other clients are spread."""
    same = [client.ask("client").backend for _ in range(6)]
    others = {source: client.ask("client", source=source).backend for source in OTHER_CLIENTS}
    again = {source: client.ask("client", source=source).backend for source in OTHER_CLIENTS}
    spread = {name: list(others.values()).count(name) for name in WORKERS}
    counts = ", ".join(f"{count} to {name}" for name, count in spread.items())
    second = "the same" if others == again else "different"
    return StepResult(
        len(set(same)) == 1
        and same[0] in WORKERS
        and others == again
        and set(others.values()) <= set(WORKERS)
        and len(set(others.values())) > 1,
        (
            f"127.0.0.1, six connections: {' '.join(each or 'refused' for each in same)}",
            f"{len(others)} other addresses: {counts}; {second} the second time",
        ),
    )


def _show_refusal(client: Client, reason: Reason, answer: Answer) -> StepResult:
    line = client.logged(answer)
    return StepResult(
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
    """The refused certificate. The log has a backend's in `detail`, with the fault."""
    if line["side"] == Side.OUTBOUND:
        return str(line["detail"])
    return f"{line['subject']} issued by {line['issuer']}" if line["subject"] else "no certificate"


def show_no_certificate(_: Lab, client: Client) -> StepResult:
    """A client without a certificate is refused."""
    return _show_refusal(client, Reason.NO_CERTIFICATE, client.ask())


def show_foreign_certificate(_: Lab, client: Client) -> StepResult:
    """A client with a certificate of a foreign CA is refused."""
    return _show_refusal(client, Reason.UNKNOWN_CA, client.ask("foreign"))


def show_wrong_backend(_: Lab, client: Client) -> StepResult:
    """A backend with the wrong certificate is refused."""
    return _show_refusal(client, Reason.BACKEND_WRONG_NAME, client.ask("client", name=IMPOSTOR))


def show_failover(lab: Lab, client: Client) -> StepResult:
    """A backend is killed and its clients move to another one."""
    before = client.ask("client")
    if before.backend not in WORKERS:
        raise StepError(f"no backend answered before one was killed: {before.refused}")
    lab.kill_backend(before.backend)
    after = [client.ask("client") for _ in range(3)]
    lines = [client.logged(answer) for answer in after]
    return StepResult(
        all(answer.backend in WORKERS and answer.backend != before.backend for answer in after),
        (
            f"{before.backend} answered 127.0.0.1 and was killed",
            *(
                f"next:    {answer.backend or answer.refused} (chosen by {line['why']})"
                for answer, line in zip(after, lines, strict=True)
            ),
        ),
    )


def show_metrics(_: Lab, client: Client) -> StepResult:
    """The metrics agree."""
    expected = {
        _handshakes(NAME, Reason.NO_CERTIFICATE, Side.INBOUND): 1,
        _handshakes(NAME, Reason.UNKNOWN_CA, Side.INBOUND): 1,
        _handshakes(IMPOSTOR, Reason.BACKEND_WRONG_NAME, Side.OUTBOUND): 1,
        f'relay_connections_total{{listener="https",route="{IMPOSTOR}"}}': 1,
        f'relay_connections_total{{listener="https",route="{NAME}"}}': client.connections - 1,
    }
    others = ("relay_sessions_closed_total", "relay_backend_selected_total")
    latest: dict[str, float] = {}

    def agree() -> bool:
        values = client.metrics()
        latest.clear()
        latest.update({key: values.get(key, 0.0) for key in expected})
        failovers = sum(
            value
            for key, value in values.items()
            if key.startswith("relay_backend_selected_total") and 'why="failover"' in key
        )
        ok = failovers >= 1 and latest == expected
        latest.update({k: value for k, value in values.items() if value and k.startswith(others)})
        return ok

    try:
        ok = wait_until("the metrics agree", agree)
    except StepError:
        ok = False
    return StepResult(ok, tuple(f"{key} {value:g}" for key, value in latest.items()))


def _handshakes(route: str, reason: Reason, side: Side) -> str:
    labels = f'listener="https",result="{reason}",route="{route}",side="{side}"'
    return f"relay_handshakes_total{{{labels}}}"


STEPS: tuple[Step, ...] = (
    show_request,
    show_stickiness,
    show_no_certificate,
    show_foreign_certificate,
    show_wrong_backend,
    show_failover,
    show_metrics,
)


def run_steps(console: Console, lab: Lab, steps: Sequence[Step] = STEPS) -> list[str]:
    """Run the steps and print the results; returns the titles of failed steps."""
    client = Client(lab)
    failed = []
    good, bad = ("✔", "✘") if console.encoding.lower().startswith("utf") else ("ok", "FAILED")
    for number, step in enumerate(steps, 1):
        title = f"{number}. {(step.__doc__ or '').rstrip('.')}"
        try:
            result = step(lab, client)
        except (StepError, OSError) as error:
            result = StepResult(ok=False, lines=(str(error),))
        if not result.ok:
            failed.append(title)
        console.print(
            Text.assemble(
                (good, "bold green") if result.ok else (bad, "bold red"), " ", (title, "bold")
            )
        )
        for line in result.lines:
            console.print(Text(f"    {line}"))
        console.print()
    return failed
