"""How the fetch of a revocation list ends, as label values.

Never: holds a value.
"""

from __future__ import annotations

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
