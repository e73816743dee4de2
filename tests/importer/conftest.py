"""Configurations of httpd in tests: with their files, imported in this process."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay.cli.import_httpd import import_httpd
from relay.config.load import load, load_config
from tests.support.crls import make_crl, to_pem

CONFIGS = Path(__file__).with_name("configs")


@dataclass
class Result:
    """What an import has written, and printed."""

    code: int
    directory: Path
    out: str
    err: str

    @property
    def toml(self):
        return (self.directory / "relay.toml").read_text(encoding="utf-8")

    @property
    def config(self):
        return load_config(self.directory / "relay.toml")

    @property
    def loaded(self):
        return load(self.directory / "relay.toml")

    @property
    def route(self):
        return self.config.listener[0].route[0]

    @property
    def pool(self):
        return next(iter(self.config.pool.values()))

    def verdict(self, line):
        """What the report says about the directive on this line, or about this text."""
        rows = [row for row in self.out.splitlines() if f":{line}: " in row or f": {line}" in row]
        assert rows, f"no line about {line}:\n{self.out}"
        return rows[0]


@pytest.fixture(scope="session")
def files(pki):
    """The files that the configurations name as @PKI@/…"""
    directory = pki.directory / "httpd"
    if not directory.exists():
        (directory / "cas").mkdir(parents=True)
        pair = pki.machine.certificate.read_bytes() + pki.machine.key.read_bytes()
        (directory / "machine-pair.pem").write_bytes(pair)
        for name in ("gateway.pem", "gateway.key", "ca.pem", "foreign-ca.pem"):
            (directory / name).write_bytes((pki.directory / name).read_bytes())
        (directory / "cas" / "one.pem").write_bytes(pki.foreign_ca.read_bytes())
        (directory / "lists.crl").write_bytes(
            to_pem(make_crl(pki.authority), make_crl(pki.foreign_authority))
        )
    return directory


@pytest.fixture
def filled(files, tmp_path):
    """Write a configuration with the paths of its files, and give its path."""
    included = tmp_path / "included.d"
    included.mkdir()
    (included / "tls.conf").write_text("SSLProtocol -all +TLSv1.3\n")

    def fill(text, name="httpd.conf"):
        data = text.encode() if isinstance(text, str) else text
        data = data.replace(b"@PKI@", str(files).encode()).replace(b"@DIR@", str(tmp_path).encode())
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return fill


@pytest.fixture
def imported(filled, tmp_path, capsys):
    """Import a configuration: its text, or the name of one in `configs`."""

    def run(given, *, force=True, probe=False, defines=(), ports=True):
        text = given
        if isinstance(given, str) and re.fullmatch(r"[\w.-]+", given):
            text = (CONFIGS / f"{given}.conf").read_bytes()
        path = filled(text)
        output = tmp_path / "out"
        code = import_httpd.callback((str(path),), output, defines, probe=probe, force=force)
        said = capsys.readouterr()
        if code == 0 and ports:
            free_ports(output / "relay.toml")
        return Result(code, output, said.out, said.err)

    return run


def free_ports(file):
    """Listen on free ports: several tests run at once, and not as root."""
    text = file.read_text(encoding="utf-8")

    def free(line):
        return re.sub(r':[0-9]+"', ':0"', line[0])

    text = re.sub(r"(?m)^listen = .*$", free, text)
    file.write_text(text, encoding="utf-8")
