"""The operators' pages match the code: every reason, every remedy, every snippet."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relay.config.load import load_config
from relay.config.model import Limits, Relay, Timeouts
from relay.config.pool_model import Pool
from relay.errors import Reason
from relay.remedies import REMEDIES

ROOT = Path(__file__).resolve().parents[2]
TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
MIGRATION = (ROOT / "docs" / "migration-from-httpd.md").read_text(encoding="utf-8")
MINIMAL = (ROOT / "conf" / "examples" / "minimal.toml").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```toml\n(.*?)^```", CONFIGURATION, re.MULTILINE | re.DOTALL)

_ENTRY = re.compile(r"^#### `(\w+)`\n(.*?)(?=^#{2,4} |\Z)", re.MULTILINE | re.DOTALL)
ENTRIES = {
    word: [" ".join(item.split()) for item in re.split(r"^- ", body, flags=re.MULTILINE)]
    for word, body in _ENTRY.findall(TROUBLESHOOTING)
}


def test_every_reason_has_one_entry_and_no_other_word_has():
    assert len(_ENTRY.findall(TROUBLESHOOTING)) == len(ENTRIES)
    assert ENTRIES.keys() == {reason.value for reason in Reason}


@pytest.mark.parametrize("reason", Reason)
def test_an_entry_has_meaning_cause_and_the_logs_remedy(reason):
    meaning, cause, *remedy = ENTRIES[reason.value]
    assert meaning.endswith(".")
    assert cause.startswith("Usual cause: ")
    assert remedy == ([f"Remedy: {REMEDIES[reason]}"] if REMEDIES[reason] else [])


@pytest.mark.parametrize("page", [TROUBLESHOOTING, CONFIGURATION], ids=["troubleshooting", "conf"])
def test_every_word_that_looks_like_a_reason_is_one(page):
    prefixes = ("backend_", "alert_", "unknown_", "no_", "not_", "wrong_")
    endings = ("_timeout", "_limit", "_disabled", "_too_long")
    named = {
        word
        for word in re.findall(r"`([a-z_]+)`", page)
        if word.startswith(prefixes) or word.endswith(endings)
    }
    assert named - Pool.model_fields.keys() <= {reason.value for reason in Reason}


# By a snippet's first line: the part of the minimal configuration that it replaces.
PLACES = {
    'include = ["conf.d/*.toml"]': (0, 0),
    "[[listener]]": (0, None),
    "[[listener.route]]": (MINIMAL.index("[[listener.route]]"), MINIMAL.index("[pool.app]")),
    "[listener.route.allow]": (MINIMAL.index("[pool.app]"),) * 2,
    "[listener.route.deny]": (MINIMAL.index("[pool.app]"),) * 2,
    "[listener.route.crl]": (MINIMAL.index("[pool.app]"),) * 2,
    "[pool.app]": (MINIMAL.index("[pool.app]"), MINIMAL.index("machine_certificate")),
    "[pool.app.health]": (MINIMAL.index("[[pool.app.backend]]"),) * 2,
    "[[pool.app.backend]]": (MINIMAL.index("[[pool.app.backend]]"), len(MINIMAL)),
}


def _complete(snippet: str) -> str:
    start, end = PLACES[snippet.partition("\n")[0].partition("  #")[0].strip()]
    return MINIMAL[:start] + snippet + (MINIMAL[end:] if end is not None else "")


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.splitlines()[0])
def test_every_snippet_of_the_configuration_page_loads(snippet, tmp_path, monkeypatch):
    monkeypatch.setenv("FLEET", "machine")
    (tmp_path / "ssl").mkdir()
    (tmp_path / "ssl" / "app1.address").write_text("192.0.2.1:443\n")
    file = tmp_path / "relay.toml"
    file.write_text(_complete(snippet), encoding="utf-8")
    assert load_config(file).source == file


def test_the_page_names_every_timeout_and_every_limit():
    keys = {*Timeouts.model_fields, *(f"limits.{key}" for key in Limits.model_fields)}
    keys |= {f"relay.{key}" for key in ("drain_timeout_s", "reload_drain_s", "old_generations")}
    keys |= {"relay.state_dir"}
    assert keys <= set(re.findall(r"`([a-z_.]+)`", CONFIGURATION))
    assert {
        "drain_timeout_s",
        "reload_drain_s",
        "old_generations",
        "state_dir",
    } <= Relay.model_fields.keys()


# Every directive of httpd 2.4 about revocation, depth and passphrases.
DIRECTIVES = re.findall(
    r"\w+",
    """
SSLCARevocationFile SSLCARevocationPath SSLCARevocationCheck
SSLProxyCARevocationFile SSLProxyCARevocationPath SSLProxyCARevocationCheck
SSLVerifyDepth SSLProxyVerifyDepth SSLPassPhraseDialog
SSLOCSPEnable SSLOCSPDefaultResponder SSLOCSPOverrideResponder SSLOCSPNoVerify
SSLOCSPProxyURL SSLOCSPResponderCertificateFile SSLOCSPResponderTimeout
SSLOCSPResponseMaxAge SSLOCSPResponseTimeSkew SSLOCSPUseRequestNonce
SSLUseStapling SSLStaplingCache SSLStaplingErrorCacheTimeout SSLStaplingFakeTryLater
SSLStaplingForceURL SSLStaplingResponderTimeout SSLStaplingResponseMaxAge
SSLStaplingResponseTimeSkew SSLStaplingReturnResponderErrors SSLStaplingStandardCacheTimeout
""",
)


@pytest.mark.parametrize("directive", DIRECTIVES)
def test_the_migration_page_says_what_becomes_of(directive):
    rows = [row for row in MIGRATION.splitlines() if row.startswith("|")]
    assert any(re.search(rf"`{directive}\b", row.split(" | ")[0]) for row in rows)
