"""What to do about each `Reason`: the `remedy` field of the access log.

Each text is read at night by an operator who knows only the reason word: the cause
first, then what to do. `docs/troubleshooting.md` quotes every text, and a test compares
the two.

Never: knows the single case. That is the `detail` field of the log.
"""

from __future__ import annotations

from relay.backend_remedies import BACKEND
from relay.errors import Reason

_ENDED = {
    Reason.FINISHED: "",
    Reason.TRUNCATED: (
        "the peer closed without close_notify: every byte received was delivered, but the"
        " relay cannot tell whether more bytes were lost; if this matters, make the peer close TLS"
        " properly"
    ),
    Reason.IDLE_TIMEOUT: (
        "no byte moved for idle_s; raise it, or let the client send keep-alives, if"
        " such sessions are wanted"
    ),
    Reason.LINGER_TIMEOUT: (
        "one side closed, then no byte moved for linger_s; raise it if the other side needs longer"
    ),
    Reason.DRAIN_TIMEOUT: (
        "the relay was stopping or reloading, and this session was still open after"
        " relay.drain_timeout_s (stop) or relay.reload_drain_s (reload); raise it if sessions"
        " need longer"
    ),
    Reason.DRAINED: "",
    Reason.MAX_SESSION: (
        "the session lasted as long as the listener's max_session_s allows; raise it if"
        " sessions need longer"
    ),
    Reason.GENERATION_ENDED: (
        "the session used an old configuration, and more than relay.old_generations old"
        " configurations still had sessions; raise it, or reload less often"
    ),
    Reason.INBOUND_RESET: "the client reset the connection; see the client's log",
    Reason.OUTBOUND_RESET: "the backend reset the connection; see the backend's log",
    Reason.INBOUND_LOST: (
        "the client's machine stopped answering, or the network to it is down; raise the"
        " listener's user_timeout_s and keepalive if such clients come back later"
    ),
    Reason.OUTBOUND_LOST: (
        "the backend's machine stopped answering, or the network to it is down; look at the"
        " machine, its network, and firewalls that forget idle connections"
    ),
}

_JUDGED_AGAIN = {
    Reason.REVOKED_DURING_SESSION: (
        "the client's certificate, or a CA above it, was revoked while its session was open;"
        " issue a new certificate if this client is wanted"
    ),
    Reason.NOT_ALLOWED_DURING_SESSION: (
        "the route's client_ca, allow or deny was changed while the session was open, and no"
        " longer admits this client; see the detail, and undo the change if the client is wanted"
    ),
    Reason.EXPIRED_DURING_SESSION: (
        "the client's certificate, or a CA above it, expired while the session was open; renew"
        ' it in time, or set at_expiry = "finish" or expiry_grace_s in the route'
    ),
    Reason.BACKEND_REVOKED_DURING_SESSION: (
        "the backend's certificate, or a CA above it, was revoked while the session was open;"
        " give the backend a new certificate"
    ),
    Reason.BACKEND_NOT_TRUSTED_DURING_SESSION: (
        "the pool's backend_ca was changed while the session was open, and the backend's"
        " certificate no longer leads to one of its CAs; renew the certificate, or add its CA"
    ),
    Reason.BACKEND_EXPIRED_DURING_SESSION: (
        "the backend's certificate, or a CA above it, expired while the session was open; renew"
        ' it in time, or set at_expiry = "finish" or expiry_grace_s in the pool'
    ),
    Reason.KICKED: (
        "an operator ended the client's sessions with relay kick and keeps it out for a time;"
        " see who and why in the detail; let the client in again with: relay kick --undo"
    ),
}

_FIRST_BYTES = {
    Reason.HELLO_TIMEOUT: (
        "the client connected but sent no complete ClientHello within timeouts.hello_s;"
        " ignore it if the address is a health check or a port scan"
    ),
    Reason.PEER_GONE: (
        "the client closed before the handshakes were complete; ignore it if the address is a"
        " TCP health check"
    ),
    Reason.NOT_TLS: (
        "the client did not start with a TLS record; make it speak TLS from the first byte"
    ),
    Reason.PLAIN_HTTP: "the client speaks plain HTTP to a TLS port; use https://",
    Reason.MALFORMED_HELLO: (
        "the ClientHello does not follow RFC 8446, or is longer than 69632 bytes; look for a"
        " broken client or a scanner at this address"
    ),
    Reason.UNKNOWN_SNI: (
        "no route of this listener has this server name; add it to a route's sni, or correct"
        " the name that the client connects to"
    ),
    Reason.NO_SNI: (
        "the client sent no server name, and the listener has no route without sni; connect by"
        " name, or add a route without sni as the last one"
    ),
    Reason.PROXY_PEER_REFUSED: (
        "only the peers in accept_proxy.from may connect to this listener; add this peer if it is"
        " a balancer that sends PROXY headers, or let it connect to a listener without accept_proxy"
    ),
    Reason.PROXY_HEADER_MISSING: (
        "the listener has accept_proxy, and this peer sent no PROXY header; let the balancer send"
        " one (send-proxy-v2 in HAProxy, proxy_protocol on in nginx), or let the client connect to"
        " a listener without accept_proxy"
    ),
    Reason.PROXY_HEADER_INVALID: (
        "the PROXY header does not follow its specification; correct the sender, or see the detail"
        " for what is wrong and where"
    ),
    Reason.PLAIN_POSTGRES: (
        "the client speaks PostgreSQL without TLS, which is always refused; set sslmode to"
        " verify-full, and sslcert and sslkey. A cancel request of libpq before 17 is always sent"
        " without TLS"
    ),
    Reason.STARTTLS_REFUSED: (
        "the client asked for TLS inside PostgreSQL's protocol, and the route does not take that;"
        ' set starttls = "postgres" in the route, or sslnegotiation=direct in the client (libpq'
        " 17+)"
    ),
    Reason.BYTES_BEFORE_TLS: (
        "something followed the client's request for TLS before it was answered; if the client is"
        " not broken, somebody on the way tried to inject it (CVE-2021-23214)"
    ),
    Reason.PER_CLIENT_LIMIT: (
        "this client address already has limits.per_client connections open; raise it if many"
        " clients share the address"
    ),
    Reason.PER_CLIENT_RATE: (
        "this client address, or its network, makes more new connections per second than the"
        " listener's per_client_rate and per_client_burst allow; raise them if many clients share"
        " the address, or let the client keep its connections open"
    ),
    Reason.HALF_OPEN_LIMIT: (
        "this connection had waited longest in its handshake, and a newer client needed its"
        " place; if the client addresses with this reason are a flood, block them, otherwise"
        " raise the limit in the detail: limits.handshakes or limits.connections"
    ),
    Reason.HALF_OPEN_PER_CLIENT: (
        "this client address has limits.half_open_per_client connections with an unfinished"
        " handshake; raise it if many clients share the address"
    ),
    Reason.DRAINING: (
        "the relay was stopping or reloading before the handshakes of this connection were"
        " complete; let the client connect again"
    ),
}

_CLIENT = {
    Reason.NO_CERTIFICATE: (
        "the client sent no certificate; configure one that is signed by the route's client_ca"
    ),
    Reason.UNKNOWN_CA: (
        "the client's certificate does not lead to a CA in the route's client_ca; let the"
        " client send its intermediates, or add its CA to client_ca"
    ),
    Reason.EXPIRED: (
        "the client's certificate, or a CA above it, has expired; renew it, and compare the clocks"
    ),
    Reason.NOT_YET_VALID: (
        "the client's certificate is not valid yet; compare the clocks of the client's CA and of"
        " this machine"
    ),
    Reason.WRONG_PURPOSE: (
        "the client's certificate, or a CA above it, is not for clients; reissue the one in"
        " the detail with the usage it lacks, or see accept_server_certificates if it is for"
        " servers"
    ),
    Reason.INVALID_CERTIFICATE: (
        "OpenSSL refused the client's certificate; reissue it without the fault in the detail"
    ),
    Reason.CHAIN_TOO_LONG: (
        "the client's certificate chain is longer than the limit in the detail allows; let it"
        " send its certificate and its intermediates only, or raise the limit:"
        " limits.certificate_chain_bytes, or the route's max_chain_depth"
    ),
    Reason.REVOKED: (
        "the client's certificate, or a CA above it, is on a revocation list of the route;"
        " issue a new one if this client is wanted"
    ),
    Reason.CRL_MISSING: (
        "no revocation list covers the client's certificate, or a CA above it, so the relay"
        " cannot know whether it is revoked; add the list of the CA in the detail to the"
        " route's crl, or see relay status if it is to be fetched; or set crl.missing ="
        ' "accept"'
    ),
    Reason.CRL_EXPIRED: (
        "the revocation list has expired, and a newer one may revoke the client; get the CA's"
        " current list, or see relay status if it is to be fetched; or set crl.expired ="
        ' "grace" to use the old one for crl.grace_s'
    ),
    Reason.NOT_ALLOWED: (
        "the client's certificate is valid, but the route's allow or deny keeps it out; if this"
        " client is wanted, add an entry to allow, or remove the entry of deny in the detail"
    ),
    Reason.PROTOCOL_VERSION: (
        "the client offers no TLS version that the route accepts; update the client: it must"
        " speak TLS 1.3, or TLS 1.2 where the route's min_version is TLSv1.2; where its max_version"
        " is TLSv1.2, it must speak TLS 1.2"
    ),
    Reason.NO_SHARED_CIPHER: (
        "the client offers no cipher that the route accepts; compare its ciphers with the"
        " route's ciphers_tls12 and ciphersuites_tls13"
    ),
    Reason.NO_SHARED_GROUP: (
        "the client offers no key exchange group that the route accepts; compare its groups"
        " with the route's groups"
    ),
    Reason.NO_SHARED_ALPN: (
        "the client offers none of the protocols in the route's alpn; add its protocol, or"
        " correct the client"
    ),
    Reason.SNI_MISMATCH: (
        "the server name in the handshake is not the one in the first bytes; look at this"
        " client: it is broken, or it attacks"
    ),
    Reason.HANDSHAKE_TIMEOUT: (
        "the client did not finish the TLS handshake within timeouts.handshake_s; raise it for"
        " slow networks, otherwise look at the client"
    ),
    Reason.TLS_ERROR: (
        "the client broke the TLS protocol; see OpenSSL's message in the detail, and update the"
        " client"
    ),
}

_CLIENT_ALERTS = {
    Reason.ALERT_BAD_CERTIFICATE: (
        "the client refused the route's certificate; check the certificate with: relay check"
    ),
    Reason.ALERT_UNKNOWN_CA: (
        "the client does not trust the CA of the route's certificate; install that CA in the"
        " client, or complete the chain in the certificate file"
    ),
    Reason.ALERT_CERTIFICATE_EXPIRED: (
        "the client says that the route's certificate has expired; renew it, and compare the clocks"
    ),
    Reason.ALERT_CERTIFICATE_UNKNOWN: (
        "the client refused the route's certificate; check that the certificate has the name"
        " that the client connects to"
    ),
    Reason.ALERT_UNSUPPORTED_CERTIFICATE: (
        "the client cannot use the route's certificate; check its extended key usage"
        " (serverAuth) and key type"
    ),
    Reason.ALERT_HANDSHAKE_FAILURE: (
        "the client has nothing in common with the route; compare TLS versions, ciphers and groups"
    ),
    Reason.ALERT_PROTOCOL_VERSION: (
        "the client does not accept the TLS version that was chosen; compare its versions with"
        " the route's min_version and max_version"
    ),
    Reason.ALERT_OTHER: (
        "the client ended the connection with the alert in the detail; see the client's log"
    ),
}

_RELAY = {
    Reason.ROUTE_DISABLED: (
        "a file of the route cannot be used, so its clients get the alert internal_error;"
        " renew the file in the detail: the relay notices it without a reload"
    ),
    Reason.POOL_DISABLED: (
        "a file of the route's pool cannot be used, so its clients get the alert"
        " internal_error; renew the file in the detail: the relay notices it without a reload"
    ),
    Reason.NO_RESOURCES: (
        "this machine has no file descriptor, memory or local port left for a connection;"
        " raise LimitNOFILE, MemoryMax or net.ipv4.ip_local_port_range, or lower"
        " limits.connections"
    ),
    Reason.INTERNAL_ERROR: (
        "this is a bug in the relay; report it with the message and the traceback in the log"
    ),
}

REMEDIES: dict[Reason, str] = {
    **_ENDED,
    **_JUDGED_AGAIN,
    **_FIRST_BYTES,
    **_CLIENT,
    **_CLIENT_ALERTS,
    **BACKEND,
    **_RELAY,
}
