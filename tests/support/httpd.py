"""The real httpd, with the virtual host that relay replaces.

It accepts TLS with client certificates, and uses mod_proxy_balancer with TLS to its
members.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.support.gateway import wait_until
from tests.support.pki import Pki
from tests.support.ports import held_port

PATIENCE_S = 20
_MODULES = next(
    (
        path
        for path in (Path("/usr/lib/apache2/modules"), Path("/usr/lib64/httpd/modules"))
        if (path / "mod_proxy_balancer.so").exists()
    ),
    None,
)
_LOADED = (
    "mpm_event",
    "authz_core",
    "slotmem_shm",
    "socache_shmcb",
    "ssl",
    "proxy",
    "proxy_http",
    "proxy_balancer",
    "lbmethod_byrequests",
)


def httpd_program() -> str | None:
    """The program with its balancer module, or None when it is not installed."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))
    return (
        (shutil.which("apache2", path=path) or shutil.which("httpd", path=path))
        if _MODULES
        else None
    )


class Httpd:
    """A running httpd with members at these ports of localhost.

    Their routes are w1, w2, … by default. `sticky` are the parameters of ProxyPass.
    """

    def __init__(
        self,
        directory: Path,
        pki: Pki,
        ports: list[int],
        *,
        routes: Sequence[str] = (),
        sticky: str = "stickysession=JSESSIONID",
    ) -> None:
        self.directory = directory
        self._open = ExitStack()
        self.port = self._open.enter_context(held_port())
        machine = directory / "machine.pem"
        machine.write_bytes(pki.machine.certificate.read_bytes() + pki.machine.key.read_bytes())
        loaded = (
            "\n".join(
                f"LoadModule {name}_module {_MODULES}/mod_{name}.so"
                for name in _LOADED
                if (_MODULES / f"mod_{name}.so").exists()
            )
            if _MODULES
            else ""
        )
        members = "\n".join(
            f"BalancerMember https://localhost:{port} route={route} retry=10"
            for route, port in zip(
                routes or [f"w{number}" for number in range(1, len(ports) + 1)], ports, strict=True
            )
        )
        user = "User nobody\nGroup #65534" if os.geteuid() == 0 else ""
        (directory / "httpd.conf").write_text(f"""
ServerRoot "{directory}"
ServerName app.example.com
DefaultRuntimeDir "{directory}"
PidFile "{directory}/httpd.pid"
ErrorLog "{directory}/error.log"
Listen 127.0.0.1:{self.port}
{loaded}
{user}
StartServers 1
ServerLimit 1
ThreadsPerChild 8
MaxRequestWorkers 8
<VirtualHost 127.0.0.1:{self.port}>
    SSLEngine on
    SSLCertificateFile {pki.gateway.certificate}
    SSLCertificateKeyFile {pki.gateway.key}
    SSLCACertificateFile {pki.ca}
    SSLVerifyClient require
    SSLProxyEngine on
    SSLProxyMachineCertificateFile {machine}
    SSLProxyCACertificateFile {pki.ca}
    SSLProxyVerify require
    <Proxy balancer://httpslb>
        {members}
    </Proxy>
    ProxyPass / balancer://httpslb/ lbmethod=byrequests {sticky}
</VirtualHost>
""")
        self._process: subprocess.Popen[bytes] | None = None

    def log(self) -> str:
        """Its error log."""
        file = self.directory / "error.log"
        return file.read_text() if file.exists() else ""

    def __enter__(self) -> Self:
        command = [
            httpd_program() or "httpd",
            "-DFOREGROUND",
            "-d",
            str(self.directory),
            "-f",
            str(self.directory / "httpd.conf"),
        ]
        self._process = process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

        def accepts() -> bool:
            assert process.poll() is None, self.log()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        try:
            wait_until("httpd accepts", accepts, detail=self.log)
        except BaseException:
            process.kill()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(PATIENCE_S)
        self._open.close()
