"""A bar chart of the medians, one panel per workload, as PNG.

Never: is required. Without matplotlib there is no chart.
"""

from __future__ import annotations

from pathlib import Path

from bench.report import Cell
from bench.workloads import WORKLOADS


def draw_chart(cells: dict[str, dict[str, Cell]], file: Path) -> bool:
    """Write the chart; False without matplotlib, or with nothing to draw."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = {
        workload: [(name, cell) for name, cell in row.items() if cell.cost is not None]
        for workload, row in cells.items()
    }
    rows = {workload: row for workload, row in rows.items() if row}
    if not rows:
        return False
    across = min(3, len(rows))
    down = -(-len(rows) // across)
    figure, axes = plt.subplots(down, across, figsize=(4.6 * across, 2.6 * down), squeeze=False)
    panels = axes.flatten()
    for panel, (workload, row) in zip(panels, rows.items(), strict=False):
        costs = [cell.cost or 0.0 for _, cell in row]
        spread = [
            [cost - cell.low for cost, (_, cell) in zip(costs, row, strict=True)],
            [cell.high - cost for cost, (_, cell) in zip(costs, row, strict=True)],
        ]
        colours = ["#1f77b4" if name == "relay" else "#b0b7bf" for name, _ in row]
        panel.barh(
            [name for name, _ in row],
            costs,
            xerr=spread,
            color=colours,
            ecolor="#555555",
            capsize=2,
        )
        panel.invert_yaxis()
        panel.set_title(f"{workload} ({WORKLOADS[workload].unit})", fontsize=9, loc="left")
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(rows) :]:
        panel.set_visible(False)
    figure.suptitle(
        "Cost of one unit to the gateway, lower is better (bar: median, whiskers: all rounds)",
        fontsize=10,
        x=0.02,
        ha="left",
    )
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)
    return True
