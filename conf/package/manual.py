"""Writes the manual pages: relay(1), one page per command, and relay.toml(5).

    python conf/package/manual.py DIR

The pages of commands have the texts of `relay COMMAND --help`, relay.toml(5) has the
comments of conf/relay.toml. SOURCE_DATE_EPOCH is their date; without it, today.

Never: has a text about a command or a key of its own.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import relay  # noqa: E402  from this tree
from relay.cli.main import commands  # noqa: E402
from relay.config.reference import Key, Section, read_reference  # noqa: E402

DATE = time.strftime(
    "%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH") or time.time()))
)
FILES = (
    ("/etc/relay/relay.toml", "The configuration, if ./relay.toml does not exist."),
    ("/run/relay", "Control socket and endpoints.json, with the systemd unit."),
    ("/var/lib/relay", "The same and fetched revocation lists, kept over restarts."),
)


def escape(text: str) -> str:
    """Plain text as roff: no character of it is a command."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return text.replace("`", "\\(ga").replace("^", "\\(ha").replace("~", "\\(ti")


def prose(text: str) -> str:
    """A text of --help or a comment: `words in backquotes` are bold."""
    parts = re.split(r"`([^`]+)`", " ".join(text.split()))
    shown = [f"\\fB{escape(each)}\\fR" if at % 2 else escape(each) for at, each in enumerate(parts)]
    lines = textwrap.wrap("".join(shown), 78, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in lines)


def heading(title: str, section: int) -> list[str]:
    """The first line of a page."""
    group = "User Commands" if section == 1 else "File Formats"
    return [
        f'.TH {title.upper()} {section} {DATE} "relay {relay.__version__}" "{group}"',
        ".nh",
        ".ad l",
    ]


def tagged(rows: list[tuple[str, str]]) -> list[str]:
    """A list of terms with their texts."""
    return [line for term, text in rows for line in (".TP", term, prose(text))]


def pages_of(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The page of a command and of each command below it, with their file names."""
    context = click.Context(command, info_name=" ".join(path), help_option_names=["-h", "--help"])
    name = "-".join(path)
    first, *more = (command.help or "").split("\n\n")
    lines = heading(name, 1)
    lines += [".SH NAME", prose(f"{name} - {first.rstrip('.')}")]
    usage = " ".join(command.collect_usage_pieces(context))
    lines += [".SH SYNOPSIS", f"\\fB{escape(' '.join(path))}\\fR {escape(usage)}"]
    lines += [".SH DESCRIPTION", prose(first)]
    for paragraph in more:
        lines += [".PP", prose(paragraph)]
    records = (each.get_help_record(context) for each in command.get_params(context))
    options = [record for record in records if record]
    lines += [".SH OPTIONS", *tagged([(f"\\fB{escape(a)}\\fR", b) for a, b in options])]
    below = command.commands if isinstance(command, click.Group) else {}
    if below:
        rows = [
            (f"\\fB{escape('-'.join((*path, each)))}\\fR(1)", child.get_short_help_str(200))
            for each, child in below.items()
        ]
        lines += [".SH COMMANDS", *tagged(rows)]
    lines += [".SH EXAMPLES", ".EX", *map(escape, getattr(command, "examples", ())), ".EE"]
    codes = sorted(getattr(command, "exit_codes", {}).items())
    lines += [".SH EXIT STATUS", *tagged([(f"\\fB{code}\\fR", text) for code, text in codes])]
    if len(path) == 1:
        lines += [".SH FILES", *tagged([(f"\\fI{escape(a)}\\fR", b) for a, b in FILES])]
    others = ["relay.toml(5)", *(["-".join(path[:-1]) + "(1)"] if len(path) > 1 else [])]
    lines += [".SH SEE ALSO", escape(", ".join(sorted(others)))]
    yield f"{name}.1", "\n".join(lines) + "\n"
    for each, child in below.items():
        yield from pages_of(child, (*path, each))


def page_of_the_configuration(sections: list[Section]) -> str:
    """relay.toml(5): every section, every key."""
    top, *rest = sections
    lines = heading("relay.toml", 5)
    lines += [".SH NAME", "relay.toml \\- configuration of relay(1)"]
    lines += [".SH DESCRIPTION", prose(top.text), *_keys(top.keys)]
    for section in rest:
        lines += [f".SH {escape(section.title)}"]
        said = " ".join(filter(None, (f"({section.note})" if section.note else "", section.text)))
        lines += [prose(said)] if said else []
        lines += _keys(section.keys)
    lines += [".SH FILES", *tagged([(f"\\fI{escape(a)}\\fR", b) for a, b in FILES[:1]])]
    lines += [".SH SEE ALSO", escape("relay(1), relay-check(1), relay-example(1)")]
    return "\n".join(lines) + "\n"


def _keys(keys: list[Key]) -> list[str]:
    shown: dict[str, Key] = {}
    for key in keys:  # a key may be there twice: its default, and an example
        shown.setdefault(key.name, key)
    return tagged([(_term(key), key.text or "As in allow.") for key in shown.values()])


def _term(key: Key) -> str:
    """A key as in the file; a long value may be broken at its colons."""
    mark = "# " if key.is_commented else ""
    value = escape(key.value).replace(":", ":\\:")
    return f"{mark}\\fB{escape(key.name)}\\fR = {value}"


def main() -> int:
    """Write all pages into the directory."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 64
    to = Path(sys.argv[1])
    to.mkdir(parents=True, exist_ok=True)
    text = (ROOT / "conf" / "relay.toml").read_text(encoding="utf-8")
    pages = dict(pages_of(commands, ("relay",)))
    pages["relay.toml.5"] = page_of_the_configuration(read_reference(text))
    for name, page in pages.items():
        (to / name).write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
