"""The label values of metrics that are closed lists, and the bounds of histograms.

Never: holds a value.
"""

from __future__ import annotations

# Upper bounds of handshake_seconds, in seconds; the last bucket (+Inf) is implied.
HANDSHAKE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# Upper bounds of session_seconds, in seconds.
SESSION_BUCKETS_S = (
    *(0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0),
    *(300.0, 900.0, 3600.0, 14_400.0, 86_400.0),
)

NO_ROUTE = "none"
TO_BACKEND, FROM_BACKEND = "to_backend", "from_backend"
# Why a backend was chosen: its name is in the cookie; the hash of a cookie that names
# no backend; the client's address or certificate; the balancing method; or because
# another backend failed, is down or is full.
WHYS = ("cookie", "hashed", "sticky", "balanced", "failover")
HANDSHAKE_OK, HANDSHAKE_RESUMED = "ok", "resumed"
CHECK_OK = "ok"
CONNECT_FAILED, HANDSHAKE_FAILED, HTTP_FAILED = "connect_failed", "handshake_failed", "http_failed"
CANARY_RESULTS = PROMOTED, WITHDRAWN, BY_OPERATOR = (
    "promoted",
    "withdrawn",
    "withdrawn_by_operator",
)
RENEWAL_RESULTS = ("renewed", "refused", "failed")
CHECK_RESULTS = (CHECK_OK, CONNECT_FAILED, HANDSHAKE_FAILED, HTTP_FAILED)
# How the look-up of a backend's name ends: with addresses, with an error, or with the
# answer that there are none.
LOOK_UP_OK, LOOK_UP_FAILED, LOOK_UP_NOTHING = "ok", "failed", "nothing"
LOOK_UP_RESULTS = (LOOK_UP_OK, LOOK_UP_FAILED, LOOK_UP_NOTHING)
# How the fetch of a revocation list ends.
CRL_OK, CRL_NOT_MODIFIED = "ok", "not_modified"
CRL_CONNECT_FAILED, CRL_TIMEOUT, CRL_HTTP_FAILED = "connect_failed", "timeout", "http_failed"
CRL_REDIRECT_REFUSED, CRL_TOO_LARGE, CRL_TRUNCATED = "redirect_refused", "too_large", "truncated"
# Not a list, one that no CA here has signed, or an older one than before; not written.
CRL_INVALID, CRL_OLDER, CRL_NOT_KEPT = "invalid", "older", "not_kept"
CRL_FETCH_RESULTS = (
    CRL_OK,
    CRL_NOT_MODIFIED,
    CRL_CONNECT_FAILED,
    CRL_TIMEOUT,
    CRL_HTTP_FAILED,
    CRL_REDIRECT_REFUSED,
    CRL_TOO_LARGE,
    CRL_TRUNCATED,
    CRL_INVALID,
    CRL_OLDER,
    CRL_NOT_KEPT,
)
