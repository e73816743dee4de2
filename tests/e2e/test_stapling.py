"""A relay that staples an OCSP response to its handshakes."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from relay.demo.ca import LeafSpec, key_pem
from tests.support.gateway import wait_until
from tests.support.pki import GATEWAY_NAMES, write
from tests.support.programs import NAME, needs, output_of, program
from tests.support.responses import response
from tests.support.tables import listener_table, pool_table, route_table

WHERE = "listener.https.route[0].ocsp_response"
METRIC = "relay_ocsp_response_next_update_timestamp_seconds{listener=https,route=default}"


FAST = {"watch_s": 0.2}


def replace(file, data):
    """As a job that fetches a response does."""
    new = file.with_suffix(".new")
    new.write_bytes(data)
    new.rename(file)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "ocsp.der"


@pytest.fixture
def body(pki, echo, file):
    return listener_table(route_table(pki, ocsp_response=file)) + pool_table(pki, [echo.address])


def shown(pki, port, version):
    """What a client that asks for a response prints."""
    done = subprocess.run(
        [
            *(program("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", version, "-status"),
            *("-servername", NAME, "-CAfile", pki.ca),
            *("-cert", pki.client.certificate, "-key", pki.client.key),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert "Verify return code: 0 (ok)" in done.stdout, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_client_that_asks_gets_the_response(start, pki, body, file, scrape, version):
    file.write_bytes(response(pki.gateway.issued, pki.authority))
    gateway = start(body)
    text = shown(pki, gateway.port(), version)
    assert "OCSP Response Status: successful" in text
    assert "Cert Status: good" in text
    wait_until("the metric is there", lambda: scrape(gateway)[METRIC] > 0, detail=gateway.log)
    checked = gateway.command("check")
    assert (checked.returncode, "is stapled until" in checked.stdout) == (0, True)


def test_a_response_made_by_openssl_is_stapled(start, pki, body, file, tmp_path):
    """As its own responder, which signs with the CA's key."""
    ca, index, key = pki.ca, tmp_path / "index.txt", tmp_path / "ca.key"
    issued = pki.gateway.issued.certificate
    until = issued.not_valid_after_utc.strftime("%y%m%d%H%M%SZ")
    index.write_text(f"V\t{until}\t\t{issued.serial_number:X}\tunknown\t/CN=gateway\n")
    key.write_bytes(key_pem(pki.authority.key))
    request = tmp_path / "request.der"
    leaf = tmp_path / "leaf.pem"
    leaf.write_bytes(issued.public_bytes(Encoding.PEM))
    output_of("openssl", "ocsp", "-issuer", ca, "-cert", leaf, "-no_nonce", "-reqout", request)
    output_of(
        *("openssl", "ocsp", "-index", index, "-CA", ca, "-rsigner", ca, "-rkey", key),
        *("-reqin", request, "-respout", file, "-ndays", "1"),
    )
    gateway = start(body)
    assert "Cert Status: good" in shown(pki, gateway.port(), "-tls1_3")


@needs("openssl")
def test_the_command_of_the_page_fetches_a_response(start, pki, body, file, tmp_path):
    """From a responder of a private CA, which no system trusts."""
    answer = response(pki.gateway.issued, pki.authority)

    class Responder(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            self.send_header("Content-Type", "application/ocsp-response")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    (tmp_path / "server.pem").write_bytes(pki.gateway.issued.certificate.public_bytes(Encoding.PEM))
    shutil.copy(pki.ca, tmp_path / "ca.pem")
    page = (Path(__file__).parents[2] / "docs" / "operation.md").read_text(encoding="utf-8")
    command = page.partition("## An OCSP response")[2].partition("```sh\n")[2].partition("```")[0]
    first, rest = command.split("\n", 1)
    assert first.startswith("url=")
    with HTTPServer(("127.0.0.1", 0), Responder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        script = f"set -e; url=http://127.0.0.1:{server.server_port}\n{rest}"
        done = subprocess.run(
            ["sh", "-c", script], cwd=tmp_path, timeout=20, capture_output=True, check=False
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    gateway = start(body)
    assert "Cert Status: good" in shown(pki, gateway.port(), "-tls1_3")


def test_a_response_that_is_not_there_yet_is_called_missing(start, body, file):
    status = start(body).command("status").stdout
    assert f"route https/default staples nothing: {file} is missing" in status


def test_a_response_that_does_not_fit_disables_nothing(start, pki, body, file, scrape):
    file.write_bytes(response(pki.machine.issued, pki.authority))
    gateway = start(body)
    assert "OCSP response: no response sent" in shown(pki, gateway.port(), "-tls1_3")
    [line] = [line for line in gateway.log().splitlines() if "is not stapled" in line]
    assert WHERE in line
    wait_until("the metric is there", lambda: scrape(gateway).get(METRIC) == 0, detail=gateway.log)
    status = gateway.command("status").stdout
    assert f"route https/default staples nothing: {file} is about the certificate" in status


def test_a_response_is_not_stapled_after_its_end(start, pki, body, file, scrape):
    file.write_bytes(response(pki.gateway.issued, pki.authority))
    gateway = start(body, relay=FAST)
    assert "Cert Status: good" in shown(pki, gateway.port(), "-tls1_3")
    soon = timedelta(seconds=5)
    replace(file, response(pki.gateway.issued, pki.authority, next_update=soon))
    told = "is not stapled any more: it has expired"
    wait_until("the end is told", lambda: told in gateway.log(), detail=gateway.log)
    assert "OCSP response: no response sent" in shown(pki, gateway.port(), "-tls1_3")
    assert gateway.log().count(told) == 1
    assert scrape(gateway)[METRIC] == 0


def test_a_renewed_response_is_stapled_without_a_reload(start, pki, body, file):
    """A bad one keeps what is in use, and is told."""
    file.write_bytes(b"")
    gateway = start(body, relay=FAST)
    port, workers = gateway.port(), gateway.workers()
    assert "OCSP response: no response sent" in shown(pki, port, "-tls1_3")
    replace(file, response(pki.gateway.issued, pki.authority))
    stapled = "OCSP Response Status: successful"
    wait_until("it is stapled", lambda: stapled in shown(pki, port, "-tls1_3"), detail=gateway.log)
    replace(file, b"<html>")
    told = "is not an OCSP response in DER but HTML"
    wait_until("the bad one is told", lambda: told in gateway.log(), detail=gateway.log)
    assert stapled in shown(pki, port, "-tls1_3")
    file.unlink()
    wait_until("the gap is told", lambda: "cannot be read" in gateway.log(), detail=gateway.log)
    assert stapled in shown(pki, port, "-tls1_3")
    assert (gateway.endpoints["generation"], gateway.workers()) == (1, workers)


def stapled_for(pki, port):
    """The serial number of the certificate that the stapled response is about."""
    found = re.search(r"Serial Number: ([0-9A-F]+)", shown(pki, port, "-tls1_3"))
    return int(found[1], 16) if found else None


def test_response_and_certificate_may_come_one_after_the_other(start, pki, echo, file, tmp_path):
    spec = LeafSpec("gateway", dns=GATEWAY_NAMES, purposes=("server",))
    old, new = pki.authority.issue(spec), pki.authority.issue(spec)
    files = write(tmp_path, "gateway", old)
    file.write_bytes(response(old, pki.authority))
    route = route_table(pki, files=files, ocsp_response=file)
    body = listener_table(route) + pool_table(pki, [echo.address])
    gateway = start(body, relay=FAST)
    replace(file, response(new, pki.authority))
    renewed = f"renewed in place: {file}"
    wait_until("the response is read", lambda: renewed in gateway.log(), detail=gateway.log)
    port = gateway.port()
    assert stapled_for(pki, port) == old.certificate.serial_number
    write(tmp_path, "gateway", new)
    serial = new.certificate.serial_number
    wait_until("both are new", lambda: stapled_for(pki, port) == serial, detail=gateway.log)
