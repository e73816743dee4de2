"""Cipher lists of TLS 1.2 that have no suite for the key of a certificate."""

from __future__ import annotations

import pytest

from relay.demo.ca import LeafSpec
from relay.files import Files
from relay.tls.certificates.findings import Level
from relay.tls.lint_key_suites import lint_key_suites
from tests.support.handshakes import config_of
from tests.support.pki import GATEWAY_NAMES

RSA, ECDSA = "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-GCM-SHA256"


def levels(pki, key_type, **settings):
    spec = LeafSpec("gateway", dns=GATEWAY_NAMES, purposes=("server",), key_type=key_type)
    files = pki.write(pki.authority.issue(spec))
    pair = {"certificate": files.certificate, "private_key": files.key}
    config = config_of(pki, routes=({**pair, **settings},))
    return [each.level for each in lint_key_suites(config, Files())]


@pytest.mark.parametrize(
    ("key_type", "ciphers", "is_good"),
    [
        ("rsa-2048", RSA, True),
        ("rsa-2048", ECDSA, False),
        ("rsa-2048", "AES128-GCM-SHA256", True),
        ("rsa-2048", "ALL:!aRSA", False),
        ("rsa-2048", f"{ECDSA}:{RSA}", True),
        ("ec-p256", ECDSA, True),
        ("ec-p256", RSA, False),
        ("ec-p256", "AES128-GCM-SHA256:DHE-RSA-AES128-GCM-SHA256", False),
        ("ec-p256", "HIGH", True),
    ],
)
def test_a_list_without_a_suite_for_the_key_is_told(pki, key_type, ciphers, is_good):
    found = levels(pki, key_type, ciphers_tls12=ciphers)
    assert found == ([] if is_good else [Level.WARNING])


def test_it_is_an_error_where_there_is_no_other_version(pki):
    assert levels(pki, "ec-p256", ciphers_tls12=RSA, max_version="TLSv1.2") == [Level.ERROR]
    assert levels(pki, "ec-p256", ciphers_tls12=RSA, min_version="TLSv1.3") == []


def test_the_default_list_suits_both(pki):
    assert levels(pki, "ec-p256") == levels(pki, "rsa-2048") == []
