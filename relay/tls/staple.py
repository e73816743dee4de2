"""Staples an OCSP response to the handshakes of a route (RFC 6066, section 8).

OpenSSL asks for the response only when a client wants one, so other clients cost
nothing.

Never: staples an expired response.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from relay.tls.certificates.certificate import Certificate
from relay.tls.ocsp_response import ResponseError, check_response
from relay.tls.raw import EXTENSION_NO_ACK, EXTENSION_OK, NULL, Pointer, ffi, lib

_NOTHING = "is missing, empty or not readable"


class Staple:
    """The response of one route. A renewal replaces it in place."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.until_at = 0.0  # Unix time; 0 without a usable response
        self.why = ""  # why there is none
        self._response = b""
        self._latest = b""  # of the file; it may be for the next certificate
        self._callback = ffi.callback("int(SSL *, void *)", self._answer, error=EXTENSION_NO_ACK)

    def set(
        self,
        latest: bytes | None,
        chain: tuple[Certificate, ...],
        known: Iterable[Certificate],
        now_at: float | None = None,
    ) -> None:
        """Use the latest response of the file, or else the one before, if either fits.

        `latest` is None if only the certificate has changed. See `check_response`.
        """
        now_at = time.time() if now_at is None else now_at
        if latest is not None:
            self._latest = latest
        known = tuple(known)
        candidates = (self._latest, self._response) if self._response else (self._latest,)
        self._response, self.until_at, self.why = b"", 0.0, ""
        for candidate in candidates:
            try:
                usable = check_response(candidate, chain, known, now_at)
            except ResponseError as error:
                self.why = self.why or (error.what if candidate else _NOTHING)
            else:
                self._response, self.until_at, self.why = usable.der, usable.until_at, ""
                return

    def use(self, context: Pointer) -> None:
        """Let an `SSL_CTX *` staple it. The context must not outlive this object."""
        lib.SSL_CTX_set_tlsext_status_cb(context, self._callback)

    def _answer(self, ssl: Pointer, _argument: Any) -> int:
        response = self._response
        if not response or time.time() >= self.until_at:
            return EXTENSION_NO_ACK
        copy = lib.OPENSSL_malloc(len(response))  # OpenSSL frees it
        if copy == NULL:
            return EXTENSION_NO_ACK
        ffi.memmove(copy, response, len(response))
        lib.SSL_set_tlsext_status_ocsp_resp(ssl, copy, len(response))
        return EXTENSION_OK
