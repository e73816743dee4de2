"""`relay init`: write a first configuration and a systemd unit.

Never: overwrites a file unless --force is given; reads or copies a private key.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from relay.cli.help import EXIT_CANNOT_START, EXIT_CONFIG, EXIT_INTERRUPTED, EXIT_OK, Command
from relay.cli.output import allow_interrupt, say
from relay.cli.start import SECTION, load_openssl

_FILE = click.Path(path_type=Path)
_LISTEN = "0.0.0.0:8443"


@click.command(
    cls=Command,
    section=SECTION,
    examples=[
        "relay init",
        "relay init --certificate gw.pem --client-ca ca.pem --backend app1.internal:443",
        "relay init --output /etc/relay --listen 0.0.0.0:443 --backend w1=192.0.2.1:443",
    ],
    exit_codes={
        EXIT_OK: "the files are written, and the relay would start with them",
        EXIT_CANNOT_START: "a file cannot be written",
        EXIT_CONFIG: (
            "a value cannot be used, and nothing is written; or the files are written, but"
            " relay check finds problems"
        ),
        EXIT_INTERRUPTED: "interrupted with Ctrl-C; nothing is written",
    },
)
@click.option("--name", metavar="NAME", help="Name of the pool of backends. Default: app.")
@click.option(
    "--listen",
    multiple=True,
    metavar="ADDRESS",
    help=f"Where clients connect; may be repeated. Default: {_LISTEN}.",
)
@click.option(
    "--sni",
    multiple=True,
    metavar="NAME",
    help="Server name that clients ask for; may be repeated. Default: any, and none.",
)
@click.option("--certificate", type=_FILE, metavar="FILE", help="The certificate for clients.")
@click.option("--key", type=_FILE, metavar="FILE", help="Its key. Default: the same file.")
@click.option("--client-ca", type=_FILE, metavar="FILE", help="The CA of the clients.")
@click.option(
    "--backend",
    multiple=True,
    metavar="[ROUTE=]ADDRESS",
    help="A backend, host:port; may be repeated. ROUTE is its name in logs. Default: NAME1, …",
)
@click.option(
    "--backend-name",
    metavar="NAME",
    help="The name in the backends' certificates. Default: the host of each address.",
)
@click.option("--backend-ca", type=_FILE, metavar="FILE", help="Their CA. Default: --client-ca.")
@click.option(
    "--machine-certificate",
    type=_FILE,
    metavar="FILE",
    help="The certificate for backends. Default: --certificate.",
)
@click.option("--machine-key", type=_FILE, metavar="FILE", help="Its key. Default: the same file.")
@click.option(
    "--admin",
    metavar="ADDRESS",
    help='Where metrics and the operators\' page are; "" is nowhere. Default: 127.0.0.1:9180.',
)
@click.option("--user", metavar="USER", help="The user of the workers after a start as root.")
@click.option(
    "--output",
    type=_FILE,
    default=Path(),
    metavar="DIR",
    help="Directory for the files. Default: .",
)
@click.option("--force", is_flag=True, help="Replace relay.toml and relay.service in DIR.")
def init(output: Path, *, force: bool, **given: object) -> int:
    """Write a first relay.toml and a systemd unit.

    Asks for what is not given if stdin is a terminal. Certificates and keys stay where
    they are. The result is checked as relay check does.
    """
    from relay.cli import first_files

    allow_interrupt()
    answers = {key: value for key, value in given.items() if value not in (None, ())}
    if sys.stdin is not None and sys.stdin.isatty():
        _ask(answers)
    needed = ("certificate", "client_ca", "backend")
    missing = [f"--{key.replace('_', '-')}" for key in needed if key not in answers]
    if missing:
        raise click.UsageError(f"{' and '.join(missing)} must be given without a terminal to ask")
    directory = output.absolute()
    files = first_files.make(directory, answers)
    present = [str(file) for file in files if file.is_symlink() or file.exists()]
    if present and not force:
        verb = "exists" if len(present) == 1 else "exist"
        raise click.UsageError(f"{' and '.join(present)} {verb}; --force replaces what is there")
    first_files.write(directory, files)
    for file in files:
        click.echo(f"wrote {file}")
    return _check(*files)


_QUESTIONS = (
    ("name", "Name of the pool of backends", "app"),
    ("listen", "Addresses to listen on", _LISTEN),
    ("certificate", "Certificate for clients (file)", None),
    ("key", "Its private key (file)", "certificate"),
    ("client_ca", "CA of the clients (file)", None),
    ("backend", "Backends (host:port, separated by spaces)", None),
    ("backend_name", "Name in the backends' certificates (empty: the host)", ""),
    ("backend_ca", "CA of the backends (file)", "client_ca"),
    ("machine_certificate", "Certificate for backends (file)", "certificate"),
    ("machine_key", "Its private key (file)", "machine_certificate"),
)


def _ask(answers: dict[str, object]) -> None:
    """Ask for everything that was not given. A default may be another answer."""
    if {"certificate", "client_ca", "backend"} <= answers.keys():
        return  # the rest has defaults
    for key, question, default in _QUESTIONS:
        if key in answers:
            continue
        known = str(answers[default]) if default in answers else default
        text = str(click.prompt(question, default=known, err=True)).strip()
        if key in {"listen", "backend"}:
            answers[key] = tuple(text.replace(",", " ").split())
        elif text:
            answers[key] = text


def _check(config: Path, unit: Path) -> int:
    """Check what was written, and say how to start it."""
    from relay.config.load import load

    load_openssl()
    from relay.cli.findings import lines_of
    from relay.sandbox.confinement import hide_memory
    from relay.supervisor.check import check_all

    hide_memory()
    report = check_all(load(config))
    for line in lines_of(report, strict=False):
        if line.is_problem:
            say(str(line.problem))
        elif line.severity == "warning":
            click.echo(f"warning {line.problem}")
    if not report.would_start:
        return say(f"correct this, then run: relay check --config {config}", EXIT_CONFIG)
    click.echo(f"{config}: ok" if not report.count else f"{config}: would start")
    click.echo(f"start it by hand:   relay start --config {shlex.quote(str(config))}")
    copy = f"cp {shlex.quote(str(unit))} /etc/systemd/system/"
    click.echo(f"or by systemd:      {copy} && systemctl enable --now {unit.name}")
    return EXIT_OK
