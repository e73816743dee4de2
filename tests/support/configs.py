"""Listeners and pools for tests of whole relays."""

from __future__ import annotations


def write_body(pki, echo, listen=("127.0.0.1:0",), **listener):
    """One listener on these addresses, a default route, and a pool of one backend."""
    addresses = ", ".join(f'"{address}"' for address in listen)
    more = "\n".join(f"{key} = {value}" for key, value in listener.items())
    return f"""
[[listener]]
name = "https"
listen = [{addresses}]
{more}

[[listener.route]]
pool = "echo"
certificate = "{pki.gateway.certificate}"
private_key = "{pki.gateway.key}"
client_ca = "{pki.ca}"

[pool.echo]
machine_certificate = "{pki.machine.certificate}"
machine_key = "{pki.machine.key}"
backend_ca = "{pki.ca}"

[[pool.echo.backend]]
route = "w1"
address = "{echo.address}"
name = "backend.example.com"
"""
