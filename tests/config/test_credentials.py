"""`credential:NAME` in place of a path names a file of systemd's directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.config.listener_model import Route
from relay.config.load import load_config
from relay.config.pool_model import Pool
from relay.credentials import file_remedy, is_credential, shown

DIRECTORY = "/run/credentials/relay.service"
CERTIFICATE = 'certificate = "ssl/server.pem"'


@pytest.fixture
def given(monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", DIRECTORY)


def files_of(model):
    """The keys of a section that name one file."""
    return sorted(
        name
        for name, field in model.model_fields.items()
        if "Path" in repr(field.annotation) and "tuple" not in repr(field.annotation)
    )


def test_every_key_that_names_a_file_takes_a_credential(given, write):
    routes, pools = files_of(Route), files_of(Pool)
    assert len(routes) >= 4
    assert len(pools) >= 5
    lines = "\n".join(f'{name} = "credential:{name}"' for name in routes)
    text = f"""
    [admin]
    user = "root"
    password_file = "credential:password"
    [[listener]]
    name = "https"
    listen = ["127.0.0.1:8443"]
    [[listener.route]]
    pool = "web"
    {lines}
    [pool.web]
    sticky = "cookie"
    cookie = "R"
    cookie_insert = true
    """ + "\n".join(f'{name} = "credential:{name}"' for name in pools)
    text += '\n[[pool.web.backend]]\nroute = "w1"\naddress = "192.0.2.1:443"\n'
    config = load_config(write(text=text))
    assert config.admin.password_file == Path(DIRECTORY, "password")
    for section, names in ((config.listener[0].route[0], routes), (config.pool["web"], pools)):
        for name in names:
            assert getattr(section, name) == Path(DIRECTORY, name)


def test_without_systemds_directory_every_key_says_what_to_add(monkeypatch, problems):
    for directory in (None, "", "relative"):
        if directory is None:
            monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
        else:
            monkeypatch.setenv("CREDENTIALS_DIRECTORY", directory)
        found = problems(
            (CERTIFICATE, 'certificate = "credential:server"'),
            ('backend_ca = "ssl/ca.pem"', 'backend_ca = "credential:backends"'),
        )
        assert [each.where for each in found] == [
            "listener.https.route[0].certificate",
            "pool.web.backend_ca",
        ]
        assert "LoadCredential=server:FILE" in found[0].remedy
        assert "\n" not in str(found[0])


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../../etc/shadow", "/etc/shadow", "a:b", "n" * 256]
)
def test_a_name_cannot_lead_out_of_the_directory(given, problems, name):
    [found] = problems((CERTIFICATE, f'certificate = "credential:{name}"'))
    assert found.where == "listener.https.route[0].certificate"
    assert "is not the name of a credential" in found.what


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        (("workers = 2", 'state_dir = "credential:run"'), "relay.state_dir"),
        (("workers = 2", 'state_dir = "./credential:run"'), "relay.state_dir"),
        (('access = "-"', 'access = "credential:log"'), "log.access"),
    ],
)
def test_what_the_relay_writes_cannot_be_a_credential(given, problems, edit, where):
    [found] = problems(edit)
    assert (found.where, "cannot be a credential" in found.what) == (where, True)


def test_messages_have_the_credential_and_its_path(given):
    file = Path(DIRECTORY, "server")
    assert shown(file) == f"credential:server ({file})"
    assert is_credential(file)
    assert "LoadCredential=server:FILE" in file_remedy(file, "create it")
    other = Path("/etc/relay/server")
    assert (shown(other), file_remedy(other, "create it")) == (str(other), "create it")
