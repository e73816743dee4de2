"""The README is short, its links lead somewhere, and its commands do what it says."""

import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from tests.support.gateway import PATIENCE_S, ROOT, wait_until
from tests.support.ports import held_port
from tests.support.programs import needs, program

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(
    path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md"))
)


def blocks(mark):
    """The shell commands between two marks of the README, one string per block."""
    part = README.partition(f"<!-- {mark} -->")[2].partition(f"<!-- /{mark} -->")[0]
    found = re.findall(r"^```sh\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no commands between <!-- {mark} --> and <!-- /{mark} -->"
    return found


def accepts(port):
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_it_can_be_read_within_two_minutes():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 100] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_links_of_a_page_lead_to_files_and_headings(page):
    text = page.read_text(encoding="utf-8")
    lost = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, heading = link.partition("#")
        target = page if not path else page.parent / path
        if not target.exists() or (heading and heading not in headings(target)):
            lost.append(link)
    assert lost == []


def headings(page):
    """The anchors that the usual forges make of a page's headings."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in found)
    return {heading.strip().replace(" ", "-") for heading in kept}


@pytest.fixture
def checkout(tmp_path):
    """A directory in which the README's commands find what a checkout has."""
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    command = tmp_path / ".venv" / "bin" / "relay"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m relay "$@"\n')
    command.chmod(0o755)
    return tmp_path


@needs("openssl", "curl")
def test_the_first_configuration_serves_a_client(checkout, stack):
    gateway, backend = (stack.enter_context(held_port()) for _ in range(2))
    (certificates,) = blocks("first: certificates")
    configure, check = blocks("first: check")[0].strip().splitlines()
    start, ask = blocks("first: start")
    # Free ports, and the user that runs this, differ between machines.
    more = '[relay]\nuser = "root"\n' if os.geteuid() == 0 else ""
    more += '[admin]\nlisten = "127.0.0.1:0"\n'

    def here(commands):
        return commands.replace("localhost:8443", f"localhost:{gateway}").replace(
            "9443", f"{backend}"
        )

    def shell(commands):
        done = subprocess.run(
            [program("bash"), "-euo", "pipefail", "-c", here(commands)],
            cwd=checkout,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    shell(certificates)
    shell(configure)
    file = checkout / "my" / "relay.toml"
    file.write_text(more + file.read_text().replace(":8443", f":{gateway}"))
    assert " error " not in shell(check)
    log = checkout / "log"
    with log.open("wb") as out:
        processes = subprocess.Popen(
            [program("bash"), "-euo", "pipefail", "-c", here(start) + "wait"],
            cwd=checkout,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until("the backend accepts", lambda: accepts(backend), detail=log.read_text)
        wait_until("the relay accepts", lambda: accepts(gateway), detail=log.read_text)
        answer = shell(ask)
        assert "CN = gateway.example.com" in answer or "CN=gateway.example.com" in answer
        refused = subprocess.run(
            [program("bash"), "-c", here(ask).replace("--cert my/ssl/alice.pem", "")],
            cwd=checkout,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert refused.returncode != 0
        wait_until("the refusal is told", lambda: "no_certificate" in log.read_text())
        assert '"subject":"CN=alice"' in log.read_text()
    finally:
        os.killpg(processes.pid, signal.SIGTERM)
        processes.wait(PATIENCE_S)


MIGRATION = (ROOT / "docs" / "migration-from-httpd.md").read_text(encoding="utf-8")
# The virtual host that relay replaces.
DIRECTIVES = [
    "<VirtualHost",
    "SSLEngine",
    "SSLProtocol",
    "SSLCipherSuite",
    "SSLCertificateFile",
    "SSLCertificateKeyFile",
    "SSLCertificateChainFile",
    "SSLCACertificateFile",
    "SSLVerifyClient",
    "SSLProxyEngine",
    "SSLProxyMachineCertificateFile",
    "SSLProxyMachineCertificateChainFile",
    "SSLProxyCACertificateFile",
    "SSLProxyVerify",
    "<Proxy",
    "BalancerMember",
    "route=",
    "retry=",
    "ProxyPass",
    "lbmethod=byrequests",
    "stickysession=JSESSIONID",
    "/balancer-manager",
    "CustomLog",
    "LogFormat",
    "StdEnvVars",
    "ssl-unclean-shutdown",
]
VERDICTS = {"same", "better", "by hand", "lost"}


@pytest.mark.parametrize("directive", DIRECTIVES)
def test_the_migration_page_has_a_verdict_on_every_directive(directive):
    rows = [line for line in MIGRATION.splitlines() if line.startswith("|") and directive in line]
    assert [row for row in rows if row.split(" | ")[1] in VERDICTS]


def test_every_row_of_the_migration_page_has_a_verdict():
    rows = [
        re.split(r" ?(?<!\\)\| ?", line)[1:-1]
        for table in MIGRATION.split("\n\n")
        if table.startswith("| httpd ")
        for line in table.splitlines()
        if line[:2] == "| "
    ]
    assert rows
    odd = [row for row in rows if row[0] != "httpd" and (len(row) != 3 or row[1] not in VERDICTS)]
    assert odd == []
