"""What to do about a backend that failed. See `relay.remedies`.

Never: knows the single case. That is the `detail` field of the log.
"""

from __future__ import annotations

from relay.errors import Reason

BACKEND = {
    Reason.NO_BACKEND: (
        "no backend of the pool can be tried now; see the detail, the earlier messages about"
        " this pool, and relay status"
    ),
    Reason.CONNECTING_LIMIT: (
        "max_connecting clients already wait for backends of the pool; find out why the"
        " backends answer slowly, or raise the pool's max_connecting"
    ),
    Reason.BACKEND_UNRESOLVED: (
        "the backend's name has no address; ask the resolver with: getent ahosts NAME, or for"
        " srv:NAME with: dig NAME SRV, and correct address if the name is wrong"
    ),
    Reason.BACKEND_REFUSED: (
        "nothing listens at the backend's address; start the backend, or correct address"
    ),
    Reason.BACKEND_UNREACHABLE: (
        "the network reports that the backend cannot be reached; check address, IP routes and"
        " firewalls"
    ),
    Reason.BACKEND_TIMEOUT: (
        "the backend did not accept the TCP connection within timeouts.connect_s; look for a"
        " firewall, or a backend with a full accept queue"
    ),
    Reason.BACKEND_GONE: (
        "the backend closed the connection during the TLS handshake; see the backend's log. It may"
        " expect a PROXY header (send_proxy) or PostgreSQL's request for TLS (starttls); if it is"
        " sent one, it may not expect it, or read only a shorter header (send_proxy_tlvs)"
    ),
    Reason.BACKEND_UNKNOWN_CA: (
        "the backend's certificate does not lead to a CA in the pool's backend_ca; complete"
        " the backend's chain, or add its CA to backend_ca"
    ),
    Reason.BACKEND_WRONG_NAME: (
        "the backend's certificate does not carry the expected name; set the backend's name,"
        " or issue a certificate with the expected one"
    ),
    Reason.BACKEND_WRONG_USER: (
        "another user than peer_user listens on the backend's unix socket; find out why, or"
        " correct peer_user (with systemd socket activation the listener is root's)"
    ),
    Reason.BACKEND_EXPIRED: (
        "the backend's certificate, or a CA above it, has expired; renew it, and compare the clocks"
    ),
    Reason.BACKEND_NOT_YET_VALID: (
        "the backend's certificate is not valid yet; compare the clocks of the backend's CA and"
        " of this machine"
    ),
    Reason.BACKEND_WRONG_PURPOSE: (
        "the backend's certificate, or a CA above it, is not for servers; reissue the one in"
        " the detail with the usage it lacks"
    ),
    Reason.BACKEND_INVALID_CERTIFICATE: (
        "OpenSSL refused the backend's certificate; reissue it without the fault in the detail"
    ),
    Reason.BACKEND_CHAIN_TOO_LONG: (
        "the backend's certificate chain is longer than the limit in the detail allows; let it"
        " send its certificate and its intermediates only, or raise the limit:"
        " limits.certificate_chain_bytes, or the pool's max_chain_depth"
    ),
    Reason.BACKEND_REVOKED: (
        "the backend's certificate, or a CA above it, is on a revocation list of the pool;"
        " issue a new one for the backend"
    ),
    Reason.BACKEND_CRL_MISSING: (
        "no revocation list covers the backend's certificate, or a CA above it, so the relay"
        " cannot know whether it is revoked; add the list of the CA in the detail to the"
        " pool's crl, or see relay status if it is to be fetched; or set crl.missing ="
        ' "accept"'
    ),
    Reason.BACKEND_CRL_EXPIRED: (
        "the revocation list has expired, and a newer one may revoke the backend; get the CA's"
        " current list, or see relay status if it is to be fetched; or set crl.expired ="
        ' "grace" to use the old one for crl.grace_s'
    ),
    Reason.BACKEND_REJECTED_OUR_CERTIFICATE: (
        "the backend does not accept the pool's machine_certificate; compare the backend's"
        " client CA with the issuer of the machine certificate"
    ),
    Reason.BACKEND_PROTOCOL_VERSION: (
        "the backend offers no TLS version that the pool accepts; update the backend: it must"
        " speak TLS 1.3, or TLS 1.2 where the pool's min_version is TLSv1.2; where its max_version"
        " is TLSv1.2, it must speak TLS 1.2"
    ),
    Reason.BACKEND_NO_SHARED_CIPHER: (
        "the backend shares no cipher or group with the pool; compare its settings with the"
        " pool's ciphers_tls12, ciphersuites_tls13 and groups"
    ),
    Reason.BACKEND_NO_SHARED_ALPN: (
        "the backend does not speak the protocol that was agreed on with the client; compare"
        " the route's alpn with the backend's"
    ),
    Reason.BACKEND_NOT_TLS: (
        "the backend did not answer with TLS; check the port in its address, and that the"
        " backend uses TLS on it"
    ),
    Reason.BACKEND_NO_TLS: (
        "PostgreSQL answered that it has no TLS; set ssl = on, ssl_cert_file and ssl_key_file in"
        " postgresql.conf"
    ),
    Reason.BACKEND_STARTTLS_ERROR: (
        "the backend did not answer the request for TLS as PostgreSQL does; check the port in its"
        " address and its log, or remove starttls from the pool"
    ),
    Reason.BACKEND_HANDSHAKE_TIMEOUT: (
        "the backend did not finish the TLS handshake within timeouts.handshake_s; see the"
        " backend's log and load"
    ),
    Reason.BACKEND_TLS_ERROR: (
        "the backend broke the TLS protocol; see OpenSSL's message in the detail, and the"
        " backend's log"
    ),
    Reason.BACKEND_ALERT_OTHER: (
        "the backend ended the connection with the alert in the detail; see the backend's log"
    ),
    Reason.BACKEND_DOWN: (
        "the health checks found this session's backend down, and the pool's on_down is"
        ' "close"; see relay status for the reason'
    ),
}
