"""The OpenSSL calls that the relay makes directly, checked at import.

`OpenSSL.SSL.Connection` costs four times as much Python per message, and raises an
exception for every would-block. So only contexts are built with `OpenSSL.SSL.Context`;
connections use the calls below.

Two rules hold for every caller:

- The error queue is empty between calls. `SSL_get_error` looks at it, so a leftover
  error of one connection would be reported for the next one. Successful reads and
  writes leave it empty. After a failure, a handshake or parsing a certificate the
  caller must call `ERR_clear_error`.
- A pointer to an `SSL` is owned by exactly one session, which calls `SSL_free` once.

Never: decides anything.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from OpenSSL import SSL, _util

from relay.errors import StartupError

ffi: Final[Any] = _util.ffi
lib: Final[Any] = _util.lib

_NEEDED = [
    "ASN1_STRING_get0_data", "ASN1_STRING_length", "ASN1_STRING_type", "BIO_free",
    "BIO_get_mem_data", "BIO_new", "BIO_new_mem_buf", "BIO_read", "BIO_s_mem",
    "BIO_set_mem_eof_return", "BIO_write",
    "d2i_X509_bio", "ERR_clear_error", "ERR_get_error", "ERR_GET_REASON", "ERR_peek_error",
    "ERR_reason_error_string", "EVP_get_digestbyname", "EVP_PKEY_bits", "EVP_PKEY_free",
    "i2d_PUBKEY_bio", "i2d_X509_bio", "i2d_X509_NAME", "OBJ_nid2sn", "OBJ_txt2nid", "OPENSSL_free",
    "OPENSSL_malloc",
    "PEM_write_bio_PrivateKey",
    "sk_X509_free", "sk_X509_NAME_num", "sk_X509_NAME_value", "sk_X509_new_null", "sk_X509_num",
    "sk_X509_push", "sk_X509_value", "SSL_CB_READ_ALERT", "SSL_CIPHER_find",
    "SSL_CIPHER_get_bits", "SSL_CIPHER_get_name", "SSL_CIPHER_get_version",
    "SSL_CTX_add_client_CA", "SSL_CTX_add_extra_chain_cert", "SSL_CTX_check_private_key",
    "SSL_CTX_clear_mode", "SSL_CTX_get0_param", "SSL_CTX_set1_curves_list",
    "SSL_CTX_set_alpn_select_cb", "SSL_CTX_set_cert_store", "SSL_CTX_set_cipher_list",
    "SSL_CTX_set_ciphersuites", "SSL_CTX_set_post_handshake_auth",
    "SSL_CTX_set_tlsext_status_cb",
    "SSL_CTX_set_tlsext_servername_callback", "SSL_CTX_set_verify", "SSL_CTX_set_verify_depth",
    "SSL_CTX_use_certificate", "SSL_CTX_use_PrivateKey", "SSL_do_handshake", "SSL_ERROR_SSL",
    "SSL_ERROR_WANT_READ", "SSL_ERROR_WANT_WRITE", "SSL_ERROR_ZERO_RETURN", "SSL_free",
    "SSL_get0_alpn_selected", "SSL_get0_group_name", "SSL_get0_verified_chain",
    "SSL_get1_session", "SSL_get_certificate", "SSL_get_client_CA_list",
    "SSL_get_current_cipher", "SSL_get_error", "SSL_get_peer_cert_chain",
    "SSL_get_peer_certificate", "SSL_get_server_random", "SSL_get_servername",
    "SSL_get_session", "SSL_get_version", "SSL_MODE_AUTO_RETRY",
    "SSL_MODE_ENABLE_PARTIAL_WRITE", "SSL_MODE_RELEASE_BUFFERS", "SSL_new", "SSL_OP_NO_TICKET",
    "SSL_pending", "SSL_read", "SSL_RECEIVED_SHUTDOWN", "SSL_SENT_SHUTDOWN",
    "SSL_SESSION_free", "SSL_session_reused", "SSL_set_accept_state", "SSL_set_alpn_protos",
    "SSL_set_bio", "SSL_set_connect_state", "SSL_set_fd", "SSL_set_info_callback",
    "SSL_set_options", "SSL_set_session", "SSL_set_shutdown", "SSL_set_SSL_CTX",
    "SSL_set_tlsext_host_name", "SSL_set_tlsext_status_ocsp_resp",
    "SSL_shutdown", "SSL_TLSEXT_ERR_ALERT_FATAL",
    "SSL_TLSEXT_ERR_NOACK", "SSL_TLSEXT_ERR_OK", "SSL_write",
    "TLSEXT_NAMETYPE_host_name",
    "X509_CHECK_FLAG_NEVER_CHECK_SUBJECT", "X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS",
    "X509_digest", "X509_free", "X509_get_issuer_name", "X509_get_pubkey",
    "X509_get_serialNumber", "X509_get_subject_name", "X509_get_version", "X509_getm_notAfter",
    "X509_getm_notBefore", "X509_NAME_cmp", "X509_NAME_ENTRY_get_data", "X509_NAME_get_entry",
    "X509_NAME_get_index_by_NID", "X509_NAME_oneline", "X509_PURPOSE_ANY",
    "X509_PURPOSE_SSL_CLIENT", "X509_PURPOSE_SSL_SERVER", "X509_STORE_add_cert",
    "X509_STORE_CTX_free", "X509_STORE_CTX_get0_cert", "X509_STORE_CTX_get_current_cert",
    "X509_STORE_CTX_get_error", "X509_STORE_CTX_get_error_depth", "X509_STORE_CTX_init",
    "X509_STORE_CTX_new", "X509_STORE_CTX_set_error", "X509_STORE_free", "X509_STORE_new",
    "X509_STORE_set_flags", "X509_STORE_set_purpose", "X509_STORE_up_ref", "X509_up_ref",
    "X509_V_ERR_CERT_REJECTED", "X509_V_ERR_CERT_REVOKED",
    "X509_V_ERR_INVALID_EXTENSION", "X509_V_FLAG_PARTIAL_CHAIN",
    "X509_V_FLAG_X509_STRICT", "X509_verify_cert", "X509_verify_cert_error_string",
    "X509_VERIFY_PARAM_set1_host", "X509_VERIFY_PARAM_set1_ip",
    "X509_VERIFY_PARAM_set_hostflags",
]  # fmt: skip


def check_bindings(bindings: object) -> None:
    """Raise StartupError with the names of all missing calls and constants."""
    missing = [name for name in _NEEDED if not hasattr(bindings, name)]
    if missing:
        raise StartupError(
            f"this version of cryptography does not provide {', '.join(missing)}",
            "install the versions of pyopenssl and cryptography that pyproject.toml names",
        )


check_bindings(lib)

NULL: Final[Any] = ffi.NULL
Pointer: TypeAlias = Any  # an SSL *, X509 * or SSL_SESSION *: cffi has no static types

ERROR_SSL: Final[int] = lib.SSL_ERROR_SSL
WANT_READ: Final[int] = lib.SSL_ERROR_WANT_READ
WANT_WRITE: Final[int] = lib.SSL_ERROR_WANT_WRITE
ZERO_RETURN: Final[int] = lib.SSL_ERROR_ZERO_RETURN
BOTH_SHUT: Final[int] = lib.SSL_SENT_SHUTDOWN | lib.SSL_RECEIVED_SHUTDOWN
READ_ALERT: Final[int] = lib.SSL_CB_READ_ALERT
HOST_NAME: Final[int] = lib.TLSEXT_NAMETYPE_host_name
EXTENSION_OK: Final[int] = lib.SSL_TLSEXT_ERR_OK
EXTENSION_NO_ACK: Final[int] = lib.SSL_TLSEXT_ERR_NOACK
EXTENSION_REFUSED: Final[int] = lib.SSL_TLSEXT_ERR_ALERT_FATAL
NO_PARTIAL_WILDCARDS: Final[int] = lib.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS
NEVER_CHECK_SUBJECT: Final[int] = lib.X509_CHECK_FLAG_NEVER_CHECK_SUBJECT
# Not in the bindings. Without it OpenSSL builds and verifies the relay's own chain in
# every handshake.
MODE_NO_AUTO_CHAIN: Final = 0x8
MODE_AUTO_RETRY: Final[int] = lib.SSL_MODE_AUTO_RETRY
MODE_PARTIAL_WRITE: Final[int] = lib.SSL_MODE_ENABLE_PARTIAL_WRITE
OP_NO_TICKET: Final[int] = lib.SSL_OP_NO_TICKET
MODE_RELEASE_BUFFERS: Final[int] = lib.SSL_MODE_RELEASE_BUFFERS

# The largest plaintext of one record (RFC 8446 section 5.1).
RECORD_BYTES: Final = 16_384


def openssl_version() -> str:
    """The version of the loaded OpenSSL, by its own name."""
    return SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode("ascii", "replace")
