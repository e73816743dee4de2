"""Rules of `[admin]`: where the page for operators listens, by which names it is called, and who may log in.

Never: reads the password file.
"""

from __future__ import annotations

from collections.abc import Iterator

from relay.config.address import is_ip, why_no_host_name
from relay.config.explain import quoted
from relay.config.model import Admin
from relay.errors import Problem


def check_admin(admin: Admin) -> Iterator[tuple[Problem, tuple[str, ...]]]:
    """Every problem, with the places it was compared with."""
    if admin.unix_path is not None and (not admin.unix_path.name or not admin.listen.isprintable()):
        yield (
            Problem(
                "admin.listen",
                f"{quoted(admin.listen)} names no file",
                'write for example "unix:run/admin.sock"',
            ),
            (),
        )
    for index, host in enumerate(admin.hosts):
        why = "" if is_ip(host) else why_no_host_name(host)
        if why:
            yield (
                Problem(
                    f"admin.hosts[{index}]",
                    f"{quoted(host)} {why}",
                    "write the name in the address line of the browser, without a port",
                ),
                (),
            )
    if ":" in admin.user or not admin.user.isprintable():
        yield (
            Problem(
                "admin.user",
                f"{quoted(admin.user)} cannot log in: HTTP has no user names with a colon or control characters",
                "choose another name",
            ),
            (),
        )
    if admin.user and admin.password_file is None:
        yield (
            Problem(
                "admin.password_file",
                "is missing, and admin.user is to log in",
                "name the file made by: relay password > FILE",
            ),
            ("admin.user",),
        )
    if admin.password_file is not None and not admin.user:
        yield (
            Problem(
                "admin.user",
                "is missing, and admin.password_file has a password for somebody",
                "write the name to log in with",
            ),
            ("admin.password_file",),
        )
