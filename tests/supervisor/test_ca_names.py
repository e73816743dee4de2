"""What a client is told about the CAs that its certificate may be of."""

from __future__ import annotations

import pytest

from relay.demo.ca import Authority, to_pem
from relay.tls.certificates.lint_cas import MAX_CA_NAMES_BYTES
from tests.support.client import talk
from tests.support.programs import needs, run


def told(gateway, version):
    """What OpenSSL's client shows of the request."""
    return run("openssl", "s_client", "-connect", f"127.0.0.1:{gateway.port()}", version).stdout


@needs("openssl")
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("send", ["true", "false"])
def test_ca_names_are_sent_unless_the_route_says_no(relay, pki, body, version, send):
    text = body.replace("[[listener.route]]\n", f"[[listener.route]]\nsend_ca_names = {send}\n")
    gateway = relay(text, relay={"workers": 1})
    assert ("Acceptable client certificate CA names" in told(gateway, version)) == (send == "true")
    assert talk(pki, gateway.port()) == b"hello"


def test_as_many_ca_names_as_check_admits_can_be_sent(relay, pki, body, tmp_path):
    file, cas, size = tmp_path / "cas.pem", [pki.authority.certificate], 100
    while size + 90 < MAX_CA_NAMES_BYTES:
        cas.append(Authority.root(f"CA {len(cas)} ".ljust(64, "x")).certificate)
        size += 2 + len(cas[-1].subject.public_bytes())
    file.write_bytes(to_pem(cas))
    gateway = relay(
        body.replace(f'client_ca = "{pki.ca}"', f'client_ca = "{file}"'), relay={"workers": 1}
    )
    assert talk(pki, gateway.port()) == b"hello"
