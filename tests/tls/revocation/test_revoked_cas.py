"""CAs that are revoked themselves, and namesakes that are not."""

from __future__ import annotations

import pytest

from relay.demo.ca import Authority
from relay.tls.revocation.revoked_cas import revoked_cas
from tests.support.crls import revoked_set
from tests.support.pki import parsed

OLD, NEW = Authority.root("Root"), Authority.root("Root")
ISSUING = OLD.intermediate("Issuing")
SERIAL = ISSUING.certificate.serial_number


def gone(revoked, *authorities):
    cas = {parsed(each.certificate): each for each in authorities}
    return [cas[each] for each in revoked_cas(cas, revoked)]


@pytest.mark.parametrize("order", [(OLD, NEW), (NEW, OLD)], ids=["old first", "new first"])
def test_a_number_that_a_namesake_revoked_harms_no_ca(order):
    """A CA got a new key, and started its numbers anew."""
    assert gone(revoked_set(NEW, SERIAL), *order, ISSUING) == []
    assert gone(revoked_set(OLD, SERIAL), *order, ISSUING) == [ISSUING]


def test_a_ca_below_a_revoked_one_goes_although_that_has_a_namesake():
    namesake = OLD.intermediate("Issuing")
    below = ISSUING.intermediate("Below")
    revoked = revoked_set(OLD, SERIAL)
    assert gone(revoked, OLD, ISSUING, namesake, below) == [ISSUING, below]
    assert gone(revoked, OLD, ISSUING, namesake, namesake.intermediate("Below")) == [ISSUING]


def test_a_ca_goes_if_it_cannot_be_told_which_namesake_signed_it():
    stranger = Authority.root("Root").intermediate("Issuing")
    revoked = revoked_set(NEW, stranger.certificate.serial_number)
    assert gone(revoked, OLD, NEW, stranger) == [stranger]
