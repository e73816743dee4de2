"""From measurements to what people read: medians, ratios pair by pair, a table, JSON, and the comparison with an earlier run.

Never: mixes an invalid measurement into a median.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.runner import Measurement
from bench.workloads import WORKLOADS

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Cell:
    """One gateway in one workload: median cost and spread, and the median of its cost over the reference's in the same round."""

    cost: float | None
    low: float = 0.0
    high: float = 0.0
    ratio: float | None = None
    errors: int = 0
    noisy: int = 0


def summarize(measurements: Sequence[Measurement], reference: str) -> dict[str, dict[str, Cell]]:
    """Cells by workload and gateway. A ratio above 1 means that the reference is cheaper."""
    grouped: dict[str, dict[str, list[Measurement]]] = {}
    for each in measurements:
        grouped.setdefault(each.workload, {}).setdefault(each.gateway, []).append(each)
    return {
        workload: {
            gateway: _cell(rounds, by_gateway.get(reference, []) if gateway != reference else [])
            for gateway, rounds in by_gateway.items()
        }
        for workload, by_gateway in grouped.items()
    }


def _cell(rounds: Sequence[Measurement], reference: Sequence[Measurement]) -> Cell:
    costs = [each.cost for each in rounds if each.valid and each.cost is not None]
    errors = sum(sum(each.errors.values()) for each in rounds)
    if not costs:
        return Cell(None, errors=errors)
    base = {each.round: each.cost for each in reference if each.valid}
    ratios = [
        each.cost / own
        for each in rounds
        if each.valid and each.cost is not None and (own := base.get(each.round))
    ]
    return Cell(
        statistics.median(costs),
        min(costs),
        max(costs),
        statistics.median(ratios) if ratios else None,
        errors,
        sum(each.noisy for each in rounds),
    )


def build_table(cells: dict[str, dict[str, Cell]], names: Sequence[str], reference: str) -> Table:
    """The table: cost, and in brackets how many times the reference's cost it is."""
    table = Table(
        title=f"Cost of one unit to the gateway (in brackets: times {reference}'s; more is worse for the peer)",
        title_justify="left",
    )
    table.add_column("workload")
    table.add_column("unit")
    columns = [name for name in names if any(name in row for row in cells.values())]
    for name in columns:
        table.add_column(name, justify="right")
    for workload, row in cells.items():
        table.add_row(
            workload, WORKLOADS[workload].unit, *(_text(row.get(name)) for name in columns)
        )
    return table


def build_beside_table(measurements: Sequence[Measurement]) -> Table | None:
    """What the strangers did to others: usual and beside them, medians over the rounds; None when there were none."""
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in measurements:
        if "beside_session_p99_ms" in each.details:
            grouped.setdefault((each.workload, each.gateway), []).append(each.details)
    if not grouped:
        return None
    table = Table(
        title="Beside strangers (usual > beside them; 99th percentiles)", title_justify="left"
    )
    for column in ("workload", "gateway", "connect, ms", "running sessions, ms", "CPU used"):
        table.add_column(column, justify="left" if column in ("workload", "gateway") else "right")
    for (workload, gateway), rounds in grouped.items():

        def both(name: str, rounds: list[dict[str, Any]] = rounds, *, percent: bool = False) -> str:
            usual, now = (
                statistics.median(each[f"{part}_{name}"] for each in rounds)
                for part in ("quiet", "beside")
            )
            return f"{usual:.0%} > {now:.0%}" if percent else f"{usual:.2f} > {now:.2f}"

        table.add_row(
            workload,
            gateway,
            both("connect_p99_ms"),
            both("session_p99_ms"),
            both("busy", percent=True),
        )
    return table


def _text(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    if cell.cost is None:
        return "[red]invalid[/red]"
    ratio = f" ({cell.ratio:.2f})" if cell.ratio is not None else ""
    mark = (" [red]![/red]" if cell.errors else "") + ("[yellow]~[/yellow]" if cell.noisy else "")
    spread = (
        f"\n[dim]{_number(cell.low)}..{_number(cell.high)}[/dim]" if cell.high > cell.low else ""
    )
    return f"[bold]{_number(cell.cost)}[/bold]{ratio}{mark}{spread}"


def _number(value: float) -> str:
    return (
        f"{value:.0f}"
        if abs(value) >= 100
        else f"{value:.1f}"
        if abs(value) >= 10
        else f"{value:.3f}"
    )


def list_errors(measurements: Sequence[Measurement]) -> list[str]:
    """One line per gateway, workload and kind of error."""
    counts: dict[tuple[str, str, str], int] = {}
    for each in measurements:
        for text, count in each.errors.items():
            key = (each.gateway, each.workload, text)
            counts[key] = counts.get(key, 0) + count
    return [
        f"{gateway}, {workload}: {text} ({count} times)"
        for (gateway, workload, text), count in counts.items()
    ]


def compare(cells: dict[str, dict[str, Cell]], earlier: dict[str, Any]) -> Table:
    """The run's medians against a stored run's; invalid and absent ones are left out."""
    table = Table(
        title=f"Against {earlier['environment'].get('revision', 'an earlier run')} of {earlier['environment'].get('at', '?')}",
        title_justify="left",
    )
    for column in ("workload", "gateway", "then", "now", "change"):
        table.add_column(column, justify="left" if column in ("workload", "gateway") else "right")
    for workload, row in cells.items():
        for gateway, cell in row.items():
            then = earlier["summary"].get(workload, {}).get(gateway, {}).get("cost")
            if then and cell.cost is not None:
                change = cell.cost / then - 1
                colour = "red" if change > 0.05 else "green" if change < -0.05 else "dim"
                table.add_row(
                    workload,
                    gateway,
                    _number(then),
                    _number(cell.cost),
                    f"[{colour}]{change:+.1%}[/{colour}]",
                )
    return table


def load_earlier(path: Path) -> dict[str, Any]:
    """A stored run; ValueError when it is none of ours."""
    stored: dict[str, Any] = json.loads(path.read_text())
    if stored.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} is no benchmark result of this version (schema {stored.get('schema')} instead of {SCHEMA})"
        )
    return stored
