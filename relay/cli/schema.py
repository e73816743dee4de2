"""`relay schema`: the JSON Schema of the configuration, for editors."""

from __future__ import annotations

import json

import click

from relay.cli.help import EXIT_OK, Command
from relay.cli.shipped import REFERENCE

SECTION = "Tools"


@click.command(
    cls=Command,
    section=SECTION,
    examples=["relay schema > relay.schema.json"],
    exit_codes={EXIT_OK: "the schema is printed"},
)
def schema() -> int:
    """Print the JSON Schema of the configuration.

    Editors show each key's explanation with it, complete keys and mark mistakes. Name
    it in the first line of relay.toml: `#:schema ./relay.schema.json`.
    """
    from relay.config.schema import json_schema

    made = json_schema(REFERENCE.read_text(encoding="utf-8"))
    click.echo(json.dumps(made, indent=2, ensure_ascii=False))
    return EXIT_OK
