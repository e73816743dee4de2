"""The backend's counters: their names in its answers, and their indexes in memory."""

from __future__ import annotations

COUNTERS = (
    "connections",
    "full_handshakes",
    "resumed_handshakes",
    "requests",
    "bytes_in",
    "bytes_out",
    "errors",
    "aes_128_gcm",
    "other_cipher",
    "abandoned",
    "proxy_headers",
)
(
    CONNECTIONS,
    FULL,
    RESUMED,
    REQUESTS,
    BYTES_IN,
    BYTES_OUT,
    ERRORS,
    AES_128,
    OTHER_CIPHER,
    ABANDONED,
    HEADERS,
) = range(len(COUNTERS))
