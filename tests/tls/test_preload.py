"""OpenSSL loads the relay's own settings once, before anything else imports it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import relay
from relay.supervisor.check import openssl_conf_findings
from relay.tls.preload import OPENSSL_CONF

# A separate process, as the settings are read once. It counts the tickets that a TLS
# 1.3 client gets from a context of the relay.
COUNT_TICKETS = """
import json, os, socket, ssl, subprocess, sys
from relay.tls.preload import load_openssl
loaded = load_openssl()
left = os.environ.get("OPENSSL_CONF")
again = load_openssl()
from OpenSSL import SSL
from relay.tls import stream
from relay.errors import Side
certificate, key, ca = sys.argv[1:]
context = SSL.Context(SSL.TLS_SERVER_METHOD)
context.use_certificate_chain_file(certificate)
context.use_privatekey_file(key)
client = ssl.create_default_context(cafile=ca)
client.check_hostname = False
ours, theirs = socket.socketpair()
ours.setblocking(False)
incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
peer = client.wrap_bio(incoming, outgoing)
connection = stream.accept(context._context, context._context, ours.fileno())
done = False
for _ in range(20):
    if not done:
        try:
            peer.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            pass
    data = outgoing.read()
    if data:
        theirs.sendall(data)
    result = stream.handshake(connection, Side.INBOUND)
    if done and result is stream.DONE:
        break
    incoming.write(theirs.recv(65536, socket.MSG_DONTWAIT))
assert done and result is stream.DONE, result
# Only tickets come after the Finished: application data records, one per ticket.
data, tickets = theirs.recv(65536), 0
while data:
    assert data[0] == 23
    tickets += 1
    data = data[5 + int.from_bytes(data[3:5], "big"):]
found = {"loaded": loaded, "left": left, "again": again, "tickets": tickets}
print(json.dumps(found | {"version": stream.version(connection)}))
"""


def count_tickets(pki, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "OPENSSL_CONF"}
    path = str(Path(relay.__file__).parent.parent)
    said = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            COUNT_TICKETS,
            pki.gateway.certificate,
            pki.gateway.key,
            pki.ca,
        ],
        env=inherited | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


def test_a_preloaded_process_sends_one_ticket(pki):
    assert count_tickets(pki) == {
        "loaded": True,
        "left": None,
        "again": False,
        "tickets": 1,
        "version": "TLSv1.3",
    }


@pytest.mark.parametrize("tickets", [2, 3])
def test_the_operators_own_openssl_configuration_is_respected(pki, tickets, tmp_path):
    own = tmp_path / "openssl.cnf"
    own.write_text(OPENSSL_CONF.read_text().replace("NumTickets = 1", f"NumTickets = {tickets}"))
    assert count_tickets(pki, OPENSSL_CONF=str(own)) == {
        "loaded": False,
        "left": str(own),
        "again": False,
        "tickets": tickets,
        "version": "TLSv1.3",
    }


def test_an_empty_file_turns_our_settings_off(pki):
    assert count_tickets(pki, OPENSSL_CONF="/dev/null")["tickets"] == 2


def test_our_file_is_part_of_the_package_and_changes_nothing_else():
    assert OPENSSL_CONF.is_relative_to(Path(relay.__file__).parent)
    settings = [
        line for line in OPENSSL_CONF.read_text().splitlines() if line and not line.startswith("#")
    ]
    assert settings[-1] == "NumTickets = 1"
    assert [line for line in settings if "=" in line and not line.endswith(("_conf", "_sect"))] == [
        "NumTickets = 1"
    ]


def test_a_process_with_openssl_loaded_is_told_so():
    code = (
        "import OpenSSL.SSL; from relay.tls.preload import load_openssl;"
        " raise SystemExit(3 if load_openssl() is False else 0)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENSSL_CONF"} | {
        "PYTHONPATH": str(Path(relay.__file__).parent.parent)
    }
    assert (
        subprocess.run(
            [sys.executable, "-c", code], env=environment, timeout=60, check=False
        ).returncode
        == 3
    )


def test_check_tells_what_an_own_configuration_lacks(tmp_path):
    own = tmp_path / "openssl.cnf"
    assert list(openssl_conf_findings("")) == []
    [missing] = openssl_conf_findings(str(own))
    assert (missing.level, "cannot be read" in missing.what) == ("warning", True)
    own.write_text("[default]\n")
    [found] = openssl_conf_findings(str(own))
    assert (found.level, "NumTickets = 1" in found.remedy) == ("info", True)
    assert list(openssl_conf_findings(str(OPENSSL_CONF))) == []
