"""An operator of a relay: sends requests to its page and API, with any headers."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
from typing import Any


class Operator:
    """One relay's admin listener, seen from outside.

    `headers` go with every request, `source` is the operator's own address.
    """

    def __init__(self, address: str, source: str = "", **headers: str) -> None:
        self.address = address
        self.source = (source, 0) if source else None
        self.headers = {key.replace("_", "-"): value for key, value in headers.items()}

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, str, http.client.HTTPMessage]:
        """Status, text and headers of one answer."""
        if self.address.startswith("unix:"):
            connection = http.client.HTTPConnection("localhost", timeout=20)
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(20)
            connection.sock.connect(self.address.removeprefix("unix:"))
        else:
            connection = http.client.HTTPConnection(
                self.address, timeout=20, source_address=self.source
            )
        with contextlib.closing(connection):
            connection.request(
                method,
                path,
                body,
                {
                    **self.headers,
                    **{key.replace("_", "-"): value for key, value in headers.items()},
                },
            )
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), answer.headers

    def pools(self, **headers: str) -> dict[str, Any]:
        """GET /api/pools."""
        status, text, _ = self.ask("/api/pools", **headers)
        assert status == 200, text
        found: dict[str, Any] = json.loads(text)
        return found

    def backend(self, name: str = "w1", pool: str = "main") -> dict[str, Any]:
        """One backend of /api/pools."""
        (found,) = [
            one
            for each in self.pools()["pools"]
            if each["name"] == pool
            for one in each["backends"]
            if one["backend"] == name
        ]
        return dict(found)

    def change(
        self, member: str, wanted: dict[str, Any] | bytes, token: str | None = None, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        """POST /api/pools/MEMBER, by default with the page's token."""
        token = self.pools()["csrf"] if token is None else token
        body = wanted if isinstance(wanted, bytes) else json.dumps(wanted).encode()
        status, text, _ = self.ask(
            f"/api/pools/{member}",
            "POST",
            body,
            **{"content_type": "application/json", "x_csrf_token": token, **headers},
        )
        return status, json.loads(text)


def login(user: str, password: str) -> str:
    """A header's value for HTTP basic."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
