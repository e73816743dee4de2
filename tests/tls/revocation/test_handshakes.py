"""The cases of revocation in real handshakes, where OpenSSL finds the chain."""

import time

import pytest

from relay.demo.ca import to_pem
from relay.errors import Reason
from relay.tls import verification
from tests.support.handshakes import VERSIONS, client_context, meet_client, route_of, session_of
from tests.support.pki import write
from tests.support.revocation_cases import CASES, leaf_of, set_of, trust_of

both_versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


@both_versions
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_case_has_the_same_end_in_a_handshake(pki, tmp_path, version, case):
    cas = tmp_path / "cas.pem"
    cas.write_bytes(to_pem(each.certificate for each in case.trusted))
    route = route_of(pki, client_ca=cas)
    context = client_context(pki, write(tmp_path, "client", leaf_of(case.leaf)), version)
    with meet_client(route, context, check=lambda _who: None) as meeting:
        assert meeting.reason == "done"
        session = session_of(meeting)

    route.trust, route.revoked = trust_of(case), set_of(case)

    def check(who):
        return route.why_revoked(who, verification.accepted_chain(), time.time())

    later = case.reason if case.resumed == "the same" else case.resumed
    for offered, reason in ((None, case.reason), (session, later)):
        with meet_client(route, context, session=offered, check=check) as meeting:
            assert (meeting.resumed, meeting.reason) == (offered is not None, reason or "done")
            if reason is not None:
                revoked = reason is Reason.REVOKED
                word = "CERTIFICATE_REVOKED" if revoked else "BAD_CERTIFICATE"
                assert meeting.alert == f"SSLV3_ALERT_{word}"
