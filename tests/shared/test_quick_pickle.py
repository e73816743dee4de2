"""Quick pickles hold the same values as others."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from relay.quick_pickle import QuickPickle, dumps
from relay.tls.access_rules import AccessRules, Entries
from relay.tls.certificates.inventory import CertificateInfo
from relay.tls.certificates.validity_periods import ValidityPeriod
from relay.tls.trust import BackendTrust, CaTrust, ClientTrust, CrlPolicy

QUICK = (
    AccessRules,
    BackendTrust,
    CaTrust,
    CertificateInfo,
    ClientTrust,
    CrlPolicy,
    Entries,
    ValidityPeriod,
)


@dataclass(frozen=True, slots=True)
class Record(QuickPickle):
    file: Path
    text: str = ""


@pytest.mark.parametrize(
    "value",
    [
        Record(Path("/etc/relay/ssl/ca.pem"), "ä"),
        ValidityPeriod("listener.https", 1.5, 2.5, "CN=a", "CN=b"),
        {Path("a"): [Path("a"), Path("b/../c"), Path(), Path("/")]},
        ClientTrust(AccessRules(None, None, any_entry=False), CaTrust({b"a": 1.0}), CrlPolicy()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_the_same_afterwards(value):
    again = pickle.loads(dumps(value))
    assert again == value
    assert type(again) is type(value)
    assert pickle.loads(pickle.dumps(value)) == value


def test_equal_paths_become_one_object():
    first, second = pickle.loads(dumps([Record(Path("/a/b")), Record(Path("/a/b"))]))
    assert first.file is second.file


@pytest.mark.parametrize("cls", QUICK)
def test_each_field_is_an_argument_in_its_order(cls):
    """A quick pickle calls the class with the values of its slots."""
    assert [field.name for field in fields(cls) if field.init] == list(cls.__slots__)
    assert len(cls.__slots__) > 1
