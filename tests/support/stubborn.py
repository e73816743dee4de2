"""A TLS server on pyOpenSSL.

Unlike the standard library's, it has no session id context.
"""

from __future__ import annotations

import contextlib
import socket
import threading

from OpenSSL import SSL

from tests.support.pki import Pki

PATIENCE_S = 20


class StubbornServer:
    """Verifies its clients, sends tickets, and refuses every resumption with an alert.

    `handshakes` lists the results: "full" for success, OpenSSL's words for a failure.
    """

    def __init__(self, pki: Pki, version: int) -> None:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
        context.use_certificate_chain_file(str(pki.backend.certificate))
        context.use_privatekey_file(str(pki.backend.key))
        context.load_verify_locations(str(pki.ca))
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.handshakes: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(None)
        connection = SSL.Connection(self._context, sock)
        connection.set_accept_state()
        try:
            connection.do_handshake()
            self.handshakes.append("full")
            while data := connection.recv(65536):
                connection.sendall(data)
        except SSL.ZeroReturnError:
            connection.shutdown()
        except SSL.Error as error:
            if error.args and error.args[0]:
                self.handshakes.append(error.args[0][0][2])
        finally:
            sock.close()

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
