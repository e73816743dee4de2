"""Makes text that a peer chose safe to show: names, status lines, cookie values.

A certificate can hold a name of 90 kB. A name can hold line breaks, escape sequences
for a terminal, or characters that reverse the reading direction. `clip` returns one
short printable line. It is called where such text enters the relay, before the text is
stored, cached, logged or shown.

Never: touches the values that rules compare, which must be exact (see `tls.identity`).
"""

from __future__ import annotations

from collections.abc import Iterable

MOST_CHARACTERS = 512
MOST_NAMES = 8


def clip(text: str, most: int = MOST_CHARACTERS) -> str:
    r"""The text as one printable line of at most `most` characters; … marks a cut.

    Other characters are escaped as in Python: \n, \x1b, \u202e.
    """
    if len(text) <= most and text.isprintable():
        return text
    short = text[:most]
    if not short.isprintable():
        short = "".join(char if char.isprintable() else _escape(char) for char in short)
    return short if len(short) <= most and len(text) <= most else short[: most - 1] + "…"


def clip_bytes(data: bytes, most: int = MOST_CHARACTERS) -> str:
    """Bytes as text, without decoding more of them than can be shown."""
    text = data[: most + 1].decode("utf-8", "backslashreplace")
    return clip(text, most)


def clip_names(names: Iterable[str], most: int = MOST_CHARACTERS) -> str:
    """A list of names for a message: the first few, and the number of the others."""
    every = tuple(names)
    shown = ", ".join(clip(name, 128) for name in every[:MOST_NAMES])
    more = f" and {len(every) - MOST_NAMES} more" if len(every) > MOST_NAMES else ""
    return clip(shown, most - len(more)) + more if every else "none"


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")
