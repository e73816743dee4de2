"""What the supervisor reports about the dates of revocation lists."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from relay.config.section import Crl
from relay.supervisor.list_dates import REPEAT_S, ListDates
from relay.tls.revocation.distribution_points import Scope
from relay.tls.revocation.revoked_set import ListInfo, RevokedSet, build, pack
from relay.tls.revocation.trust_sets import trust_sets_of
from tests.support.handshakes import config_of

ENDS_AT = 1_000_000.0


class Reported:
    """A `ListDates` with a clock, and one list in use."""

    def __init__(self, pki, caplog, **settings):
        crl = Crl(files=(Path("a.crl"),), **settings)
        self.config = config_of(pki, routes=({"client_ca": pki.ca, "crl": crl},))
        self._caplog = caplog
        self.changes = 0
        self.now = 0.0
        self.dates = ListDates(self._on_change)
        self.use(ENDS_AT)

    def _on_change(self):
        self.changes += 1

    def use(self, next_update, number=17):
        """Put a list into use."""
        info = ListInfo(b"k" * 32, "CN=Root", number, 1.0, next_update, Scope(), "/a.crl")
        buffer = build([(info, pack(b"k" * 32, []))])
        [name] = trust_sets_of(self.config)
        generation = SimpleNamespace(revoked={name: RevokedSet(buffer)})
        self.prepared = SimpleNamespace(config=self.config, generation=generation)

    def at(self, now_at):
        """The lines that are logged at this time, with their levels."""
        self.now += 1.0
        self._caplog.clear()
        self.dates.step(self.now, now_at, self.prepared)
        return [f"{each.levelname}: {each.getMessage()}" for each in self._caplog.records]


@pytest.fixture
def reported(pki, caplog):
    caplog.set_level(logging.INFO, logger="relay.supervisor.list_dates")
    return lambda **settings: Reported(pki, caplog, **settings)


def test_a_list_that_expires_is_an_error_once(reported):
    lists = reported()
    assert lists.at(ENDS_AT) == []
    [line] = lists.at(ENDS_AT + 1)
    assert line == (
        'ERROR: listener.https.route[0].crl: CRL 17 of "CN=Root" from /a.crl expired on'
        " 1970-01-12 13:46 UTC: what it covers is refused; get the CA's newest list"
    )
    assert lists.at(ENDS_AT + 9999) == []
    lists.use(ENDS_AT + 20_000, number=18)
    [line] = lists.at(ENDS_AT + 10_000)
    assert line.endswith('CRL 18 of "CN=Root" from /a.crl has taken the place of an expired list')
    assert lists.at(ENDS_AT + 10_001) == []


def test_an_expired_list_in_its_grace_is_told_every_hour(reported):
    lists = reported(expired="grace", grace_s=86_400)
    [line] = lists.at(ENDS_AT + 1)
    assert line.startswith("WARNING: ")
    assert line.endswith("counts until 1970-01-13 13:46 UTC; get the CA's newest list")
    assert lists.at(ENDS_AT + 2) == []
    lists.now += REPEAT_S
    assert len(lists.at(ENDS_AT + REPEAT_S)) == 1
    [line] = lists.at(ENDS_AT + 86_401)
    assert line.startswith("ERROR: ")


def test_the_lists_in_use_are_facts(reported):
    lists = reported(expired="grace", grace_s=60)
    lists.at(1)
    assert lists.changes == 1
    assert lists.dates.facts() == [
        {
            "issuer": "CN=Root",
            "source": "/a.crl",
            "number": 17,
            "this_update": 1.0,
            "next_update": ENDS_AT,
            "entries": 0,
            "grace_s": 60,
        }
    ]
    lists.at(2)
    assert lists.changes == 1
    lists.use(None, number=None)
    lists.at(3)
    assert lists.changes == 2
    assert lists.at(1e12) == []


def test_a_list_of_two_routes_is_one_fact(pki, caplog):
    crl = Crl(files=(Path("a.crl"),))
    grace = crl.model_copy(update={"expired": "grace"})
    reported = Reported(pki, caplog)
    reported.config = config_of(
        pki, routes=({"client_ca": pki.ca, "crl": crl}, {"client_ca": pki.ca, "crl": grace})
    )
    reported.use(ENDS_AT)
    assert len(reported.at(ENDS_AT + 1)) == 2
    [fact] = reported.dates.facts()
    assert fact["grace_s"] == 86_400
