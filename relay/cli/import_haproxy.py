"""`relay import-haproxy`: writes a configuration from one of HAProxy.

Never: copies a private key, or changes a file that is there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from relay.cli.help import EXIT_CONFIG, EXIT_NOT_WRITTEN, EXIT_OK, Command
from relay.cli.import_httpd import (
    SECTION,
    carry_out,
    files_argument,
    force_option,
    output_option,
    read_file,
)

if TYPE_CHECKING:
    from relay.importer.build import Imported
    from relay.importer.pool_tables import FoundName


@click.command(
    name="import-haproxy",
    cls=Command,
    section=SECTION,
    examples=["relay import-haproxy /etc/haproxy/haproxy.cfg --output my --probe"],
    exit_codes={
        EXIT_OK: "relay.toml is written; the report says what is to be done by hand",
        EXIT_NOT_WRITTEN: "a file cannot be written, or is there already",
        EXIT_CONFIG: "a FILE cannot be read, or no frontend in it can be a listener",
    },
)
@files_argument
@output_option
@click.option(
    "--probe",
    is_flag=True,
    help="Read the backends' certificates, and write verified names into `name`.",
)
@force_option
def import_haproxy(files: tuple[str, ...], output: Path, *, probe: bool, force: bool) -> int:
    """Write a relay.toml from the configuration of HAProxy.

    Reads frontends with `mode tcp` and `bind ... ssl`, and backends with TLS. Prints a
    line for each line: same, better, by hand, or lost, and why.
    """

    def run(names: Mapping[tuple[str, int], FoundName]) -> Imported | None:
        from relay.cli.this_machine import ThisMachine
        from relay.importer.disk import Disk
        from relay.importer.haproxy import convert_haproxy
        from relay.importer.haproxy_parser import HaproxyParser

        parser, disk = HaproxyParser(os.environ), Disk()
        read = [read_file(file, lambda path: parser.add(path, disk.read(path))) for file in files]
        return convert_haproxy(parser, ThisMachine(), names) if all(read) else None

    return carry_out(run, output, probe=probe, force=force)
