"""From the bytes of a configuration file to lines and words, as httpd splits them.

httpd is strict and people are not, so this reads more than httpd does: quotes that a
word processor has changed, comments behind a directive, other encodings than UTF-8,
and a backslash with spaces behind it at the end of a line.

Never: raises for any bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

# What word processors and web pages put in place of ASCII characters.
_TYPOGRAPHY = str.maketrans(
    {
        **dict.fromkeys("“”„‟«»″", '"'),
        **dict.fromkeys("‘’‚‛′", "'"),  # noqa: RUF001  these are what is replaced
        **dict.fromkeys("‐‑‒–—−", "-"),  # noqa: RUF001
        **dict.fromkeys("\u00a0\u2002\u2003\u2007\u2009\u202f\u3000", " "),
        **dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", None),
    }
)
# Their arguments may begin with "#".
_NO_COMMENTS = frozenset({"user", "group", "suexecusergroup", "rewriterule", "rewritecond"})
# AuthLDAPBindPassword, secret= of AJP, userlists and `stats auth` of HAProxy.
_SECRET = re.compile(
    r"(\b\w*(?:password|passphrase)\s+|\bsecret=|\bstats\s+auth\s+|://[^\s/@:]*:(?=[^\s/]*@))"
    r"(?:\"[^\"]*\"|'[^']*'|[^\s@]+)",
    re.IGNORECASE,
)


class Line(NamedTuple):
    """A line with its continuations joined; `number` is that of its first part."""

    number: int
    text: str
    retyped: bool  # typographic characters were replaced


def decode(data: bytes) -> str:
    """The text of a file: UTF-8 or UTF-16 by its mark, otherwise Windows' Latin-1."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def logical_lines(text: str) -> Iterator[Line]:
    """The lines that are not empty or a comment.

    A comment goes on behind a backslash, as in httpd.
    """
    started, parts = 0, ""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(lines, 1):
        started = started or number
        kept = line.rstrip()
        # httpd continues at the very end of a line only. With a space behind the
        # backslash it is a mistake, but not in a comment, which ends there.
        comment = (parts + line).lstrip().startswith("#")
        kept = line if comment else kept
        if kept.endswith("\\") and not kept.endswith("\\\\") and number < len(lines):
            parts += kept[:-1] + " "
            continue
        whole, first = parts + line, started
        started, parts = 0, ""
        plain = whole.translate(_TYPOGRAPHY).replace("\0", "").strip()
        if plain and not plain.startswith("#"):
            yield Line(first, plain, retyped=plain != whole.replace("\0", "").strip())


def hide_secrets(text: str) -> str:
    """The line for a report or a comment, without passwords."""
    return _SECRET.sub(lambda match: f"{match[1]}***", text)


def split_words(text: str) -> list[str]:
    """The words of a line. A quoted word ends at its quote, or with the line."""
    return [word for word, _, _ in _words(text)]


def without_comment(name: str, rest: str) -> str:
    """The arguments of a directive without a comment at the end of its line."""
    if name.lower() in _NO_COMMENTS:
        return rest
    for word, start, quoted in _words(rest):
        if word.startswith("#") and not quoted:
            return rest[:start].rstrip()
    return rest


def _words(text: str) -> Iterator[tuple[str, int, bool]]:
    """Each word, where it starts, and whether it was in quotes."""
    at, end = 0, len(text)
    while at < end:
        if text[at].isspace():
            at += 1
            continue
        start, quote = at, text[at]
        if quote not in "\"'":
            while at < end and not text[at].isspace():
                at += 1
            yield text[start:at], start, False
            continue
        at += 1
        word = ""
        while at < end and text[at] != quote:
            if text[at] == "\\" and text[at + 1 : at + 2] in {"\\", quote}:
                at += 1
            word += text[at]
            at += 1
        at += 1
        yield word, start, True
