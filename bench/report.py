"""The report: medians, pairwise ratios, tables, and the comparison with an earlier run.

Never: includes an invalid measurement in a median.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.measurement import Measurement
from bench.workloads import WORKLOADS

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Cell:
    """One gateway in one workload: median, lowest and highest cost.

    `ratio` is the median of its cost divided by the reference's in the same round.
    """

    cost: float | None
    low: float = 0.0
    high: float = 0.0
    ratio: float | None = None
    errors: int = 0
    noisy: int = 0


def summarize(measurements: Sequence[Measurement], reference: str) -> dict[str, dict[str, Cell]]:
    """Cells by workload and gateway. Above 1, the reference is cheaper."""
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


def as_rows(cells: dict[str, dict[str, Cell]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Cells as JSON values."""
    return {
        workload: {name: asdict(cell) for name, cell in row.items()}
        for workload, row in cells.items()
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
    """The table of costs, with the ratio to the reference in brackets."""
    table = Table(
        title=f"Cost of one unit to the gateway (in brackets: ratio to {reference}; "
        f"above 1, {reference} is cheaper)",
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
    """Quiet and beside strangers, medians over the rounds; None without strangers."""
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in measurements:
        if "beside_session_p99_ms" in each.details:
            grouped.setdefault((each.workload, each.gateway), []).append(each.details)
    if not grouped:
        return None
    table = Table(
        title="Beside strangers (quiet > beside strangers; 99th percentiles)", title_justify="left"
    )
    for column in ("workload", "gateway", "connect, ms", "running sessions, ms", "CPU used"):
        table.add_column(column, justify="left" if column in ("workload", "gateway") else "right")
    for (workload, gateway), rounds in grouped.items():

        def both(name: str, rounds: list[dict[str, Any]] = rounds, *, percent: bool = False) -> str:
            quiet, beside = (
                statistics.median(each[f"{part}_{name}"] for each in rounds)
                for part in ("quiet", "beside")
            )
            return f"{quiet:.0%} > {beside:.0%}" if percent else f"{quiet:.2f} > {beside:.2f}"

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
    """The medians of a run and of an earlier one, without invalid ones."""
    table = Table(
        title=f"Compared with {earlier['environment'].get('revision', 'an earlier run')} "
        f"of {earlier['environment'].get('at', '?')}",
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
    """Read a stored run. Raises ValueError when the file is not one."""
    stored: dict[str, Any] = json.loads(path.read_text())
    if stored.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} is not a result of this version of the benchmark "
            f"(schema {stored.get('schema')} instead of {SCHEMA})"
        )
    return stored
