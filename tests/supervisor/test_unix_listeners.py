"""The unix sockets on which balancers connect, as root opens them."""

from __future__ import annotations

import os
import pwd

import pytest

from relay.config.load import load_config
from relay.supervisor import unix_listeners
from tests.support.configs import write_body


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a socket to another user")
def test_a_link_in_place_of_the_socket_is_not_followed(pki, tmp_path, short_path, monkeypatch):
    """The workers' user may own the directory: no file of root becomes its own."""
    path, victim = short_path / "in.sock", short_path / "victim"
    victim.touch()
    open_unix = unix_listeners.open_unix

    def replaced_at_once(*arguments, **settings):
        listener = open_unix(*arguments, **settings)
        path.unlink()
        path.symlink_to(victim)
        return listener

    monkeypatch.setattr(unix_listeners, "open_unix", replaced_at_once)
    file = tmp_path / "relay.toml"
    body = write_body(pki, Backend, (f"unix:{path}",), accept_proxy='{ from = ["unix"] }')
    file.write_text('[relay]\nuser = "nobody"\n' + body)
    unix_listeners.open_for_balancers("listen", str(path), load_config(file)).close()
    assert victim.stat().st_uid == 0
    assert path.lstat().st_uid == pwd.getpwnam("nobody").pw_uid


class Backend:
    """One that nobody connects to."""

    address = "127.0.0.1:1"
