"""A forked process has devices of its own, under the descriptors that it inherited."""

from __future__ import annotations

import fcntl
import os

import pytest

from relay.tls import devices

DEVICE = "/dev/null"  # stands for a device of a provider


@pytest.fixture
def descriptor(monkeypatch):
    monkeypatch.setenv("OPENSSL_CONF", "/etc/relay/openssl.cnf")
    monkeypatch.setattr(devices, "_USUAL_MAJORS", frozenset((4, 5, *range(128, 144))))
    opened = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK)
    yield opened
    os.close(opened)


def is_shared(one, other):
    """Whether two descriptors are of one open file: then they share O_APPEND."""
    before = fcntl.fcntl(one, fcntl.F_GETFL)
    fcntl.fcntl(one, fcntl.F_SETFL, before | os.O_APPEND)
    shared = bool(fcntl.fcntl(other, fcntl.F_GETFL) & os.O_APPEND)
    fcntl.fcntl(one, fcntl.F_SETFL, before)
    return shared


def test_the_descriptor_is_of_another_open_file_afterwards(descriptor):
    inherited = os.dup(descriptor)
    try:
        assert is_shared(descriptor, inherited)
        devices._reopen(descriptor)
        assert not is_shared(descriptor, inherited)
        assert os.fstat(descriptor).st_rdev == os.fstat(inherited).st_rdev
        assert not os.get_blocking(descriptor)
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(inherited)


def test_only_devices_of_providers_are_opened_again(descriptor, monkeypatch):
    assert descriptor in list(devices._open_devices())
    monkeypatch.setenv("OPENSSL_CONF", "")
    assert list(devices._open_devices()) == []


def test_terminals_and_null_are_left_alone(monkeypatch):
    monkeypatch.setenv("OPENSSL_CONF", "/etc/relay/openssl.cnf")
    with open(DEVICE, "rb") as usual:  # noqa: PTH123
        assert usual.fileno() not in list(devices._open_devices())
