"""Rules of `[admin]`: where it listens, its host names, its user and password.

Never: reads the password file.
"""

from __future__ import annotations

from relay.config.address import host_name_fault, is_ip
from relay.config.explain import quoted
from relay.config.model import Admin
from relay.config.rules.problem_list import ProblemList


def check_admin(found: ProblemList, admin: Admin) -> None:
    """The section `[admin]`."""
    if admin.unix_path is not None and (not admin.unix_path.name or not admin.listen.isprintable()):
        found.add(
            "admin.listen",
            f"{quoted(admin.listen)} does not name a file",
            'write for example "unix:run/admin.sock"',
        )
    for index, host in enumerate(admin.hosts):
        if not is_ip(host) and (why := host_name_fault(host)):
            found.add(
                f"admin.hosts[{index}]",
                f"{quoted(host)} {why}",
                "write the host name that browsers use, without a port",
            )
    if ":" in admin.user or not admin.user.isprintable():
        found.add(
            "admin.user",
            f"{quoted(admin.user)} cannot be a user name: HTTP allows no colon and no control"
            " characters in it",
            "choose another name",
        )
    if admin.user and admin.password_file is None:
        found.add(
            "admin.password_file",
            "is missing, and admin.user needs a password",
            "name a file that was made with: relay password > FILE",
            compared=["admin.user"],
        )
    if admin.password_file is not None and not admin.user:
        found.add(
            "admin.user",
            "is missing, and admin.password_file is set",
            "set the user name that belongs to the password",
            compared=["admin.password_file"],
        )
