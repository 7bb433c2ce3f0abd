import os
import socket
from pathlib import Path

import pytest

from app.captioner import directory as directory_
from app.captioner.directory import Directory
from app.captioner.errors import CheckpointError


@pytest.fixture
def path(tmp_path):
    """A directory with a file, and one with a secret beside it."""
    (tmp_path / "inside/golden").mkdir(parents=True)
    (tmp_path / "inside/file").write_bytes(b"content")
    (tmp_path / "inside/golden/file").write_bytes(b"gold")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_bytes(b"secret")
    return tmp_path / "inside"


def read(path, name, most_bytes=1000):
    with Directory(path) as files:
        return files.read(name, most_bytes=most_bytes)


def refused(path, name, reason, **options):
    with pytest.raises(CheckpointError, match=reason):
        read(path, name, **options)


def test_files_are_read_in_folders_too(path):
    assert read(path, "file") == b"content"
    assert read(path, "golden/file") == b"gold"


def test_a_directory_may_be_a_link_and_what_it_leads_to_later_does_not_matter(path):
    current = path.parent / "current"
    current.symlink_to(path)
    with Directory(current) as files:
        current.unlink()
        current.symlink_to(path.parent / "outside")
        assert files.read("file", most_bytes=100) == b"content"


def test_a_volume_of_kubernetes_is_read_through_its_links(tmp_path):
    version = tmp_path / "..2026_11_28"
    (version / "golden").mkdir(parents=True)
    (version / "file").write_bytes(b"content")
    (version / "golden/file").write_bytes(b"gold")
    (tmp_path / "..data").symlink_to(version.name)
    for name in ("file", "golden"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    assert read(tmp_path, "file") == b"content"
    assert read(tmp_path, "golden/file") == b"gold"


@pytest.mark.parametrize(
    "target", ["../outside/file", "/etc/hostname", "/dev/zero", "/proc/self/environ"]
)
def test_a_link_that_leads_outside_is_refused(path, target):
    (path / "link").symlink_to(target)
    refused(path, "link", "link (leads out of the directory|is missing)")


def test_a_folder_that_leads_outside_is_refused(path):
    (path / "folder").symlink_to("../outside")
    refused(path, "folder/file", "leads out of the directory")
    refused(path, "../outside/file", "leads out of the directory")


def test_links_that_lead_nowhere_or_to_each_other_are_refused(path):
    (path / "nowhere").symlink_to("nothing")
    (path / "one").symlink_to("other")
    (path / "other").symlink_to("one")
    for name in ("nowhere", "one", "absent", "file/file"):
        refused(path, name, f"{name} is missing")


def test_pipes_sockets_and_folders_are_no_files(path):
    os.mkfifo(path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path / "socket"))
    for name in ("pipe", "socket", "golden"):
        refused(path, name, f"{name} is no regular file")


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_what_is_swapped_after_the_look_at_it_is_not_read(path, monkeypatch, kind):
    seen = Directory._check_regular

    def swap(files, name, state):
        seen(files, name, state)
        monkeypatch.setattr(Directory, "_check_regular", seen)
        (path / "file").unlink()
        if kind == "pipe":
            os.mkfifo(path / "file")
        elif kind == "link":
            (path / "file").symlink_to("../outside/file")
        else:
            (path / "file").mkdir()

    monkeypatch.setattr(Directory, "_check_regular", swap)
    refused(path, "file", "is no regular file|is missing")


def test_a_folder_that_is_swapped_for_a_link_is_not_followed(path, monkeypatch):
    resolved = Directory._parts

    def swap(files, name):
        parts = resolved(files, name)
        (path / "golden").rename(path / "old")
        (path / "golden").symlink_to("../outside")
        return parts

    monkeypatch.setattr(Directory, "_parts", swap)
    refused(path, "golden/file", "is missing")


def test_a_file_that_is_too_large_is_not_read(path):
    with (path / "huge").open("wb") as file:
        file.truncate(2**40)  # without taking the room
    refused(path, "huge", r"has 1099511627776 bytes, expected at most 1000")
    assert read(path, "file", most_bytes=7) == b"content"
    refused(path, "file", "has 7 bytes, expected at most 6", most_bytes=6)


@pytest.mark.parametrize("size", [0, 6, 8, 10_000])
def test_a_file_that_changes_its_size_meanwhile_is_refused(path, monkeypatch, size):
    stated = os.fstat

    def change(descriptor):
        state = stated(descriptor)
        os.truncate(path / "file", size)
        return state

    monkeypatch.setattr(directory_.os, "fstat", change)
    refused(path, "file", "changes while it is read")


def test_names_are_those_of_folders_too_and_links_are_not_followed(path):
    (path / "golden/loop").symlink_to("..")
    with Directory(path) as files:
        assert sorted(files.names()) == ["file", "file", "golden", "loop"]
        assert files.has("golden/loop")
        assert not files.has("loop")


def test_a_directory_of_more_files_than_any_checkpoint_has_is_refused(path, monkeypatch):
    monkeypatch.setattr(directory_, "MOST_ENTRIES", 5)
    for n in range(3):
        (path / f"golden/{n}").touch()
    with Directory(path) as files, pytest.raises(CheckpointError, match="at most 5 files"):
        list(files.names())


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_is_left(path):
    before = descriptors()
    (path / "link").symlink_to("../outside/file")
    read(path, "golden/file")
    for name, most_bytes in (("link", 9), ("golden", 9), ("file", 1), ("absent", 9)):
        refused(path, name, ".", most_bytes=most_bytes)
    assert descriptors() == before
