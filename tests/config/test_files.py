"""A configuration may name regular files only: nothing makes the relay wait."""

import os
import socket
import stat

import pytest

from relay.files import NotRegularError, read_regular


def test_a_file_comes_with_its_mode_and_at_most_one_extra_byte(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    file.chmod(0o640)
    data, mode = read_regular(file, 5)
    assert (data, stat.S_IMODE(mode)) == (b"12345", 0o640)
    assert read_regular(file, 3)[0] == b"1234"


def test_a_pipe_is_refused_at_once_with_and_without_a_writer(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(NotRegularError):
        read_regular(pipe, 10)
    with os.fdopen(os.open(pipe, os.O_RDWR), "wb", buffering=0), pytest.raises(NotRegularError):
        read_regular(pipe, 10)


def test_a_shells_process_substitution_is_refused():
    read, write = os.pipe()
    try:
        with pytest.raises(NotRegularError):
            read_regular(f"/dev/fd/{read}", 10)
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_refused(device):
    with pytest.raises(NotRegularError):
        read_regular(device, 10)


def test_a_directory_and_a_socket_are_refused(tmp_path, short_path):
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path, 10)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_path / "socket"))
        with pytest.raises(OSError, match="No such device"):
            read_regular(short_path / "socket", 10)
