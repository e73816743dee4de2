"""Ciphers and groups: OpenSSL decides what a setting enables, however it is spelled."""

from __future__ import annotations

import ssl

import pytest

from relay.config.values import CIPHERS_TLS12
from relay.errors import ConfigError
from relay.tls.cipher_offers import level_of, make_context
from relay.tls.ciphers import cipher_problems, lint_ciphers
from relay.tls.raw import lib
from tests.support.handshakes import (
    TLS12,
    TLS13,
    client_context,
    config_of,
    meet_backend,
    meet_client,
    route_of,
    server_context,
    target_of,
)

GOOD = "ECDHE+AESGCM"
TLS12_KEY, TLS13_KEY, GROUPS_KEY = "ciphers_tls12", "ciphersuites_tls13", "groups"

REFUSED = {
    "level 0 after an alias": (TLS12_KEY, "DEFAULT@SECLEVEL=0", "security level to 0"),
    "level 0 as a word": (TLS12_KEY, f"{GOOD}:@SECLEVEL=0", "security level to 0"),
    "level 0 first": (TLS12_KEY, f"@SECLEVEL=0:{GOOD}", "security level to 0"),
    "level 0 after a space": (TLS12_KEY, f"{GOOD} @SECLEVEL=0", "security level to 0"),
    "level 0 after a comma": (TLS12_KEY, f"{GOOD},@SECLEVEL=0", "security level to 0"),
    "level 0 after a semicolon": (TLS12_KEY, f"{GOOD};@SECLEVEL=0", "security level to 0"),
    "level 0 after level 2": (TLS12_KEY, f"{GOOD}:@SECLEVEL=2:@SECLEVEL=0", "level to 0"),
    "all but encryption": (TLS12_KEY, "eNULL", "no cipher with authentication and encryption"),
    "what ALL leaves out": (TLS12_KEY, "COMPLEMENTOFALL", "no cipher with authentication"),
    "ALL and what it leaves out": (TLS12_KEY, "ALL:COMPLEMENTOFALL", "without encryption"),
    "a suite without encryption": (TLS12_KEY, f"{GOOD}:NULL-SHA256", "NULL-SHA256"),
    "NULL at level 0": (TLS12_KEY, f"{GOOD}:NULL:@SECLEVEL=0", "security level to 0"),
    "anonymous suites": (TLS12_KEY, f"aNULL:{GOOD}", "without certificate"),
    "one anonymous suite": (TLS12_KEY, f"{GOOD}:ADH-AES128-SHA256", "ADH-AES128-SHA256"),
    "anonymous by curve": (TLS12_KEY, f"AECDH:{GOOD}", "AECDH-"),
    "MD5": (TLS12_KEY, f"{GOOD}:MD5", "NULL-MD5"),
    "passwords": (TLS12_KEY, f"{GOOD}:PSK", "shared password"),
    "passwords alone": (TLS12_KEY, "PSK", "no cipher that the relay can use in TLS 1.2"),
    "SRP": (TLS12_KEY, f"{GOOD}:SRP", "shared password"),
    "RC4 alone": (TLS12_KEY, "RC4", "no cipher with authentication and encryption"),
    "3DES alone": (TLS12_KEY, "3DES", "no cipher with authentication and encryption"),
    "EXPORT alone": (TLS12_KEY, "EXPORT", "no cipher with authentication and encryption"),
    "a tag of 64 bits": (TLS12_KEY, "ECDHE-ECDSA-AES128-CCM8", "no cipher that the relay can use"),
    "integrity alone": (TLS13_KEY, "TLS_SHA256_SHA256", "RFC 9150"),
    "integrity among others": (
        TLS13_KEY,
        "TLS_AES_128_GCM_SHA256:TLS_SHA384_SHA384",
        "without encryption (RFC 9150): TLS_SHA384_SHA384",
    ),
    "a tag of 64 bits in 1.3": (TLS13_KEY, "TLS_AES_128_CCM_8_SHA256", "nothing that OpenSSL"),
    "an unknown suite": (TLS13_KEY, "NO-SUCH", "OpenSSL does not accept"),
    "a weak curve": (GROUPS_KEY, "sect163k1", "OpenSSL does not accept"),
    "a weak curve among others": (GROUPS_KEY, "P-256:P-192", "OpenSSL does not accept"),
}  # fmt: skip

WARNED = {
    "level 1": (TLS12_KEY, f"{GOOD}:@SECLEVEL=1", "security level to 1"),
    "level 1 after an alias": (TLS12_KEY, "DEFAULT@SECLEVEL=1", "security level to 1"),
    "CBC and SHA-1 by name": (TLS12_KEY, f"{GOOD}:ECDHE-RSA-AES128-SHA", "ECDHE-RSA-AES128-SHA"),
    "CBC and SHA-1 by alias": (TLS12_KEY, "ECDHE", "CBC and SHA-1"),
    "CBC and SHA-1 in HIGH": (TLS12_KEY, "HIGH:!kRSA", "CBC and SHA-1"),
    "no forward secrecy": (TLS12_KEY, f"{GOOD}:AES128-GCM-SHA256", "forward secrecy"),
    "a slip": (TLS12_KEY, f"{GOOD}:ECDHE-RSA-AES128-GCM-SHA265", "ignores: ECDHE-RSA-AES128"),
    "RC4 among others": (TLS12_KEY, f"{GOOD}:RC4-SHA", "does not have, and ignores: RC4-SHA"),
    "a slip in 1.3": (TLS13_KEY, "TLS_AES_128_GCM_SHA256:TLS_AES", "ignores: TLS_AES"),
}

FINE = [
    {},
    {"min_version": "TLSv1.3"},
    {"max_version": "TLSv1.2"},
    {"min_version": "TLSv1.3", "max_version": "TLSv1.3"},
    {TLS12_KEY: GOOD},
    {TLS12_KEY: "HIGH:!kRSA:!SHA"},  # its anonymous suites are dropped silently
    {TLS12_KEY: f"{CIPHERS_TLS12}:!aNULL:!MD5:!RC4:!3DES"},
    {TLS12_KEY: f"aNULL:{GOOD}:!aNULL"},
    {TLS12_KEY: f"@SECLEVEL=0:@SECLEVEL=2:{GOOD}"},
    {TLS12_KEY: f"{GOOD}:@STRENGTH:@SECLEVEL=3"},
    {TLS13_KEY: "TLS_CHACHA20_POLY1305_SHA256"},
    {GROUPS_KEY: "P-521:ffdhe3072"},
]


def weaknesses(pki, **settings):
    return cipher_problems(config_of(pki, routes=(settings,)).listener[0].route[0])


@pytest.mark.parametrize(("key", "text", "words"), REFUSED.values(), ids=REFUSED)
def test_forbidden_ciphers_are_refused(pki, key, text, words):
    refused = [each for each in weaknesses(pki, **{key: text}) if each.refused]
    assert refused
    assert all(each.key == key and each.remedy for each in refused)
    assert any(words in each.what for each in refused), refused
    for build in (lambda: route_of(pki, **{key: text}), lambda: target_of(pki, **{key: text})):
        with pytest.raises(ConfigError) as caught:
            build()
        assert {problem.where.rpartition(".")[2] for problem in caught.value.problems} == {key}
    assert lib.ERR_peek_error() == 0


@pytest.mark.parametrize(("key", "text", "words"), WARNED.values(), ids=WARNED)
def test_weak_ciphers_get_a_warning_and_are_served(pki, key, text, words):
    (told,) = [each for each in weaknesses(pki, **{key: text}) if words in each.what]
    assert (told.key, told.refused) == (key, False)
    assert told.remedy
    with meet_client(route_of(pki, **{key: text}), client_context(pki, pki.client)) as meeting:
        assert meeting.reason == "done"


@pytest.mark.parametrize("settings", FINE, ids=str)
def test_sound_settings_give_no_finding(pki, settings):
    assert weaknesses(pki, **settings) == ()
    assert route_of(pki, **settings)


def test_a_rejected_key_does_not_hide_what_is_wrong_with_others(pki):
    found = weaknesses(
        pki, **{TLS12_KEY: "AES128-SHA:@SECLEVEL=0", TLS13_KEY: "NO-SUCH", GROUPS_KEY: "NO-SUCH"}
    )
    assert {each.key for each in found if each.refused} == {TLS12_KEY, TLS13_KEY, GROUPS_KEY}
    assert any("security level to 0" in each.what for each in found)
    assert any("forward secrecy" in each.what for each in found)


def test_a_group_of_tls13_alone_is_refused_below_it(pki):
    settings = {GROUPS_KEY: "X25519MLKEM768", "max_version": "TLSv1.2"}
    (found,) = weaknesses(pki, **settings)
    assert (found.key, found.refused) == (GROUPS_KEY, True)
    assert "no group that TLS 1.2 can use" in found.what
    settings[GROUPS_KEY] = "X25519MLKEM768:P-256"
    assert weaknesses(pki, **settings) == ()
    client = client_context(pki, pki.client, TLS12)
    with meet_client(route_of(pki, **settings), client) as meeting:
        assert meeting.reason == "done"


@pytest.mark.parametrize("level", range(6))
def test_the_security_level_is_openssls(level):
    context = make_context("TLSv1.2", f"{GOOD}:@SECLEVEL={level}", "", "")
    assert level_of(context) == min(level, 2)


def test_one_weak_setting_in_many_sections_is_one_finding(pki):
    weak = {"ciphers_tls12": "DEFAULT@SECLEVEL=0"}
    found = lint_ciphers(config_of(pki, routes=(weak, weak), **weak))
    assert [each.level for each in found] == sorted(each.level for each in found)
    places = ("listener.https.route[0]", "listener.https.route[1]", "pool.main")
    assert {each.where for each in found} == {", ".join(f"{at}.ciphers_tls12" for at in places)}


def test_no_accepted_setting_sends_plain_text(pki):
    """The peer offers every weak suite; the relay's own settings decide."""
    everything = "ALL:COMPLEMENTOFALL:@SECLEVEL=0"
    for version in (TLS12, TLS13):
        client = client_context(pki, pki.client, version)
        client.set_ciphers(everything)
        with meet_client(route_of(pki, ciphers_tls12="ALL"), client) as meeting:
            assert (meeting.reason, meeting.peer.cipher()[2] >= 128) == ("done", True)
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.check_hostname, anonymous.verify_mode = False, ssl.CERT_NONE
    anonymous.maximum_version = TLS12
    anonymous.set_ciphers("ADH:AECDH:eNULL:@SECLEVEL=0")
    with meet_client(route_of(pki, ciphers_tls12="ALL"), anonymous) as meeting:
        assert meeting.reason == "no_shared_cipher"
    backend = server_context(pki, pki.backend, TLS12)
    backend.set_ciphers("eNULL:aNULL:@SECLEVEL=0")
    with meet_backend(target_of(pki, ciphers_tls12="ALL"), backend) as meeting:
        assert meeting.reason == "backend_no_shared_cipher"
