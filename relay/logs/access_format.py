"""The formats of the access log: JSON, or an Apache LogFormat.

A line is printable ASCII and ends with its only newline, whatever a peer put into its
certificate or server name. It has at most LINE_BYTES, so that a write to a pipe is not
split.

Never: opens or writes a file, reads the clock (that is `logs.access_log`).
Next: `relay.logs.access_log.AccessLog`
"""

from __future__ import annotations

from relay.logs.access_record import FIELDS, Record, Render
from relay.logs.apache_format import COMBINED, COMMON, apache_renderer
from relay.logs.json_format import json_renderer

# Linux's PIPE_BUF: lines of several workers do not mix in a pipe up to this size.
LINE_BYTES = 4096

_LONG_STRINGS = 1024


def compile_format(text: str) -> Render:
    """The renderer for `log.access_format`: json, common, combined, or a LogFormat.

    Raises ConfigError with every problem of the format.
    """
    render = (
        json_renderer()
        if text == "json"
        else apache_renderer({"common": COMMON, "combined": COMBINED}.get(text, text))
    )

    def render_bounded(record: Record) -> bytes:
        # Clip before rendering: a certificate can have a subject of many kilobytes, and
        # escaping all of it would be work that any client can cause.
        if (
            len(record.subject)
            + len(record.issuer)
            + len(record.detail)
            + len(record.sni)
            + len(record.alpn)
            > _LONG_STRINGS
        ):
            record = _clip(record, 512)
        line = render(record)
        return line if len(line) <= LINE_BYTES else _render_clipped(render, record)

    return render_bounded


def _clip(record: Record, size: int) -> Record:
    cut = {
        name: value[:size] + "..."
        for name in FIELDS
        if isinstance(value := getattr(record, name), str) and len(value) > size
    }
    return record._replace(**cut)  # type: ignore[arg-type]  # only string fields are in `cut`


def _render_clipped(render: Render, record: Record) -> bytes:
    """Clip the strings until the line fits. One character may need 12 bytes."""
    line = b""
    for size in (128, 32, 8):
        line = render(_clip(record, size))
        record = record._replace(proxy=())
        if len(line) <= LINE_BYTES:
            return line
    return line[: LINE_BYTES - 1] + b"\n"  # a LogFormat that repeats a field very often
