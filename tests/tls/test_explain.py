"""OpenSSL's errors, alerts and verify codes become reasons with a detail."""

import errno

import pytest
from OpenSSL import SSL

from relay.errors import Reason, Side
from relay.remedies import REMEDIES
from relay.tls import explain
from relay.tls.explain import (
    Failure,
    after_handshake,
    after_server_hello,
    before_server_hello,
    explain_alert,
    explain_connect,
    explain_errno,
    explain_queue,
    explain_verify,
)
from relay.tls.raw import NULL, lib

# Ends that the client or the operator asked for.
NOTHING_TO_DO = (Reason.FINISHED, Reason.DRAINED)
SSL_LIBRARY = 20
SYSTEM_LIBRARY = 2


@pytest.fixture(autouse=True, scope="module")
def _words():
    """OpenSSL loads its error texts with the first context."""
    SSL.Context(SSL.TLS_METHOD)


def put(*errors):
    lib.ERR_clear_error()
    for library, number in errors:
        lib.ERR_put_error(library, 0, number, NULL, 0)


@pytest.mark.parametrize(
    ("number", "inbound", "outbound"),
    [
        (199, Reason.NO_CERTIFICATE, Reason.BACKEND_TLS_ERROR),
        (258, Reason.PROTOCOL_VERSION, Reason.BACKEND_PROTOCOL_VERSION),
        (193, Reason.NO_SHARED_CIPHER, Reason.BACKEND_NO_SHARED_CIPHER),
        (101, Reason.NO_SHARED_GROUP, Reason.BACKEND_TLS_ERROR),
        (235, Reason.NO_SHARED_ALPN, Reason.BACKEND_TLS_ERROR),
        (156, Reason.PLAIN_HTTP, Reason.BACKEND_NOT_TLS),
        (267, Reason.TLS_ERROR, Reason.BACKEND_NOT_TLS),
        (294, Reason.PEER_GONE, Reason.BACKEND_GONE),
        (1048, Reason.ALERT_UNKNOWN_CA, Reason.BACKEND_REJECTED_OUR_CERTIFICATE),
        (1040, Reason.ALERT_HANDSHAKE_FAILURE, Reason.BACKEND_NO_SHARED_CIPHER),
        (1116, Reason.ALERT_OTHER, Reason.BACKEND_REJECTED_OUR_CERTIFICATE),
        (1120, Reason.ALERT_OTHER, Reason.BACKEND_NO_SHARED_ALPN),
    ],
)
def test_openssls_codes_have_a_reason_and_the_queue_is_emptied(number, inbound, outbound):
    for side, expected in ((Side.INBOUND, inbound), (Side.OUTBOUND, outbound)):
        put((SSL_LIBRARY, number))
        failure = explain_queue(side)
        assert failure.reason is expected
        assert failure.detail
        assert lib.ERR_peek_error() == 0


@pytest.mark.parametrize("number", sorted({*explain._INBOUND, *explain._OUTBOUND}))
def test_the_same_number_of_another_library_is_ignored(number):
    for side, other in (
        (Side.INBOUND, Reason.TLS_ERROR),
        (Side.OUTBOUND, Reason.BACKEND_TLS_ERROR),
    ):
        put((lib.ERR_LIB_EVP, number))
        assert explain_queue(side).reason is other
        put((lib.ERR_LIB_EVP, number), (SSL_LIBRARY, 1045))
        assert explain_queue(side).reason in {
            Reason.ALERT_CERTIFICATE_EXPIRED,
            Reason.BACKEND_REJECTED_OUR_CERTIFICATE,
        }


def test_an_error_of_the_system_is_its_errno_unless_tls_says_more():
    put((SYSTEM_LIBRARY, errno.EPIPE))
    assert explain_queue(Side.INBOUND) == Failure(Reason.PEER_GONE, "Broken pipe")
    put((SYSTEM_LIBRARY, errno.ENETUNREACH))  # 101 is NO_SUITABLE_KEY_SHARE in the SSL library
    assert explain_queue(Side.OUTBOUND) == Failure(Reason.BACKEND_GONE, "Network is unreachable")
    put((SYSTEM_LIBRARY, errno.EPIPE), (SSL_LIBRARY, 1048))
    assert explain_queue(Side.INBOUND) == Failure(
        Reason.ALERT_UNKNOWN_CA, "the client sent the alert unknown_ca"
    )


def test_an_empty_and_an_overlong_queue_are_explained_and_emptied():
    put()
    assert explain_queue(Side.INBOUND) == Failure(Reason.TLS_ERROR, "OpenSSL gave no reason")
    put(*[(SSL_LIBRARY, 100)] * 50)
    assert explain_queue(Side.OUTBOUND).reason is Reason.BACKEND_TLS_ERROR
    assert lib.ERR_peek_error() == 0


def test_every_alert_number_has_a_reason_and_a_name():
    for number in range(256):
        for side, who in ((Side.INBOUND, "client"), (Side.OUTBOUND, "backend")):
            failure = explain_alert(side, number)
            assert failure.detail.startswith(f"the {who} sent the alert ")
            assert failure.reason.value.startswith("backend_") is (side is Side.OUTBOUND)
    assert explain_alert(Side.INBOUND, 200) == Failure(
        Reason.ALERT_OTHER, "the client sent the alert alert 200"
    )


def test_every_verify_result_has_a_reason_and_openssls_text():
    for code in set(range(1, 100)) - {17}:  # OUT_OF_MEM is neither side's fault
        inbound, outbound = (
            explain_verify(Side.INBOUND, code, 0),
            explain_verify(Side.OUTBOUND, code, 0),
        )
        assert not inbound.reason.value.startswith("backend_")
        assert outbound.reason.value.startswith("backend_")
        assert inbound.detail == outbound.detail != ""


def test_the_detail_says_which_certificate_of_a_chain_it_was():
    assert explain_verify(Side.INBOUND, 10, 0) == Failure(Reason.EXPIRED, "certificate has expired")
    assert explain_verify(Side.INBOUND, 10, 2) == Failure(
        Reason.EXPIRED, "certificate has expired (certificate 2 of its chain)"
    )


def test_an_errno_means_that_the_peer_has_gone():
    assert explain_errno(Side.INBOUND, 0) == Failure(Reason.PEER_GONE, "the connection was closed")
    assert explain_errno(Side.OUTBOUND, errno.ETIMEDOUT) == Failure(
        Reason.BACKEND_GONE, "Connection timed out"
    )


def test_every_reason_has_a_remedy_of_one_line():
    assert set(REMEDIES) == set(Reason)
    assert all(
        "\n" not in remedy and (remedy or reason in NOTHING_TO_DO)
        for reason, remedy in REMEDIES.items()
    )


@pytest.mark.parametrize("reason", [Reason.PROTOCOL_VERSION, Reason.BACKEND_PROTOCOL_VERSION])
def test_no_remedy_asks_for_an_impossible_min_version(reason):
    assert "lower" not in REMEDIES[reason]
    assert "TLS 1.3, or TLS 1.2 where" in REMEDIES[reason]


MALLOC_FAILURE = 256 | 1 << 18 | 2 << 18  # err.h


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("library", [SSL_LIBRARY, 15, 6])
def test_openssls_lack_of_memory_is_not_blamed_on_a_peer(side, library):
    put((library, MALLOC_FAILURE), (SSL_LIBRARY, 199))
    assert explain_queue(side).reason is Reason.NO_RESOURCES
    assert lib.ERR_peek_error() == 0


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOBUFS, errno.EMFILE, errno.ENFILE])
def test_the_kernels_shortages_are_not_blamed_on_a_peer(side, number):
    assert explain_errno(side, number).reason is Reason.NO_RESOURCES
    put((SYSTEM_LIBRARY, number))
    assert explain_queue(side).reason is Reason.NO_RESOURCES
    assert explain_connect(number).reason is Reason.NO_RESOURCES


@pytest.mark.parametrize("side", list(Side))
def test_lack_of_memory_in_verification_is_not_blamed_on_a_peer(side):
    assert explain_verify(side, 17, 0).reason is Reason.NO_RESOURCES


def alert_of_a_backend(number):
    return explain_alert(Side.OUTBOUND, number)


@pytest.mark.parametrize("number", range(256))
def test_a_backends_alert_is_explained_by_its_stage(number):
    """Before ServerHello: nothing in common. After it: the machine certificate."""
    common = {
        Reason.BACKEND_NO_SHARED_CIPHER,
        Reason.BACKEND_PROTOCOL_VERSION,
        Reason.BACKEND_NO_SHARED_ALPN,
    }
    rejected = Reason.BACKEND_REJECTED_OUR_CERTIFICATE
    assert before_server_hello(alert_of_a_backend(number)).reason is not rejected
    for later in (after_server_hello, after_handshake):
        told = later(alert_of_a_backend(number))
        assert told.reason not in common
        assert told.detail.startswith("the backend sent the alert ")
    assert (after_handshake(alert_of_a_backend(number)).reason is rejected) == (
        number in {41, 42, 43, 44, 45, 46, 48, 49, 116}
    )


def test_an_alert_after_the_handshake_says_so_once():
    once = after_handshake(alert_of_a_backend(40))
    assert after_handshake(once) == once
    assert once.detail == "the backend sent the alert handshake_failure after the handshake"


@pytest.mark.parametrize("side", list(Side))
def test_the_alert_ech_required_has_its_name(side):
    assert "ech_required" in explain_alert(side, 121).detail
