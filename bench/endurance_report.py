"""What `bench.endurance` prints and writes of a run.

Never: decides whether a client counts as lost (`bench.endurance` does).
"""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

_SHOWN = 10


def quantile(values: list[float], share: float) -> float:
    """The value below which this share of them is."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def reasons(failures: list[tuple[float, int, str]]) -> dict[str, int]:
    """How many failures there were of each kind."""
    return dict(Counter(why for _, _, why in failures).most_common())


def times(values: list[float]) -> dict[str, float]:
    """Milliseconds."""
    return {
        "p50": round(quantile(values, 0.5), 1),
        "p99": round(quantile(values, 0.99), 1),
        "max": round(max(values, default=0.0), 1),
    }


def merge(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The sum of what several processes report."""
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    return total


def growth(samples: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The median of each series in the second tenth, the middle and the last tenth.

    The first tenth is left out: memory is touched there for the first time.
    """
    found: dict[str, list[float]] = {}
    tenth = max(1, len(samples) // 10)
    middle = len(samples) // 2
    parts = (samples[tenth : 2 * tenth], samples[middle : middle + tenth], samples[-tenth:])
    for name in samples[0] if samples else ():
        if name != "at_s" and all(parts):
            found[name] = [median(each[name] for each in part) for part in parts]
    return found


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    plan, lines = report["plan"], []
    done = ", ".join(f"{count} {name}s" for name, count in report["done"].items()) or "nothing"
    lines.append(f"{plan['gateway']}: {done} in {report['seconds']:g} s")
    for name in ("short", "long"):
        one = report[name]
        lines.append(
            f"  {name:5} clients: started {one['started']}, finished {one['finished']}, failed"
            f" {one['failed']} ({one['excused']} of them excused),"
            f" unfinished {one['unfinished']}, changed {one['changed']},"
            f" without close_notify {one['unclean']},"
            f" {one['bytes_compared'] >> 10} KiB compared, ms {one['ms']}"
        )
        lines += [f"    {count} x {why}" for why, count in [*one["failed_by"].items()][:_SHOWN]]
        lines += [f"    lost: {each}" for each in one["lost"][:_SHOWN]]
    short = report["short"]
    lines.append(
        f"  rate: {short['started'] / report['seconds']:.0f} of {plan['rate']:g} new clients/s,"
        f" {short['resumed']} resumed, {short['late']} times behind"
    )
    lines += [f"  longest {name}: {took:g} s" for name, took in report["longest_s"].items()]
    lines += [f"  {name}: {values}" for name, values in report["growth"].items()]
    lines += [f"  problem: {problem}" for problem in report["problems"][:_SHOWN]]
    lines += [f"  counted by {who}: {what}" for who, what in report["counted"].items()]
    lines += [f"  {what}: {report[what]}" for what in ("ready", "strangers") if report.get(what)]
    lines += [f"  the gateway's error: {error}" for error in report.get("errors", ())]
    lines.append(f"  lost or changed: {report['lost']}")
    return "\n".join(lines)
