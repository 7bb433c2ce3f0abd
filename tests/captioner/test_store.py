"""Which directory of a model store is meant."""

import os
import shutil
from pathlib import Path

import pytest

from app.captioner import store
from app.captioner.checkpoint import MANIFEST
from app.captioner.errors import CheckpointError


def publish(folder, *versions):
    for version in versions:
        (folder / version).mkdir(parents=True)
        (folder / version / MANIFEST).write_text("{}")
    return folder


@pytest.fixture
def root(tmp_path):
    publish(tmp_path / "model_store/photos", "9", "10", "2")
    publish(tmp_path / "runs/mine", "best")
    return tmp_path


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("model_store/photos", "model_store/photos/10"),
        ("model_store/photos/", "model_store/photos/10"),
        ("photos", "model_store/photos/10"),
        ("model_store/photos@9", "model_store/photos/9"),
        ("photos@9", "model_store/photos/9"),
        ("model_store/photos/9", "model_store/photos/9"),
        ("model_store/photos/9@2", "model_store/photos/2"),
        ("runs/mine/best", "runs/mine/best"),
        ("nowhere/at/all", "nowhere/at/all"),
        ("model_store", "model_store"),
    ],
)
def test_a_name_leads_to_its_newest_version_or_to_the_one_that_is_asked_for(root, named, found):
    assert store.find(Path(named), [root]) == root / found


def test_the_first_root_that_has_it_wins(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    assert store.find(Path("photos"), [other, root]) == root / "model_store/photos/10"
    publish(other / "model_store/photos", "1")
    assert store.find(Path("photos"), [other, root]) == other / "model_store/photos/1"


def test_a_version_given_apart_wins_and_stands_beside_the_one_named(root):
    for named in ("photos", "photos@9", "model_store/photos/9"):
        assert store.find(Path(named), [root], "2") == root / "model_store/photos/2"


def test_the_versions_beside_what_a_link_leads_to_are_meant(root):
    (root / "current").symlink_to(root / "model_store/photos/9")
    assert store.find(Path("current"), [root]) == root / "current"
    assert store.find(Path("current"), [root], "2") == root / "model_store/photos/2"


@pytest.mark.parametrize("version", ["7", "..", "../photos/2", "9/../2", "/"])
def test_a_version_that_is_not_there_is_told_with_those_that_are(root, version):
    with pytest.raises(CheckpointError, match=r"no version .*; there are: 2, 9, 10$"):
        store.find(Path("photos"), [root], version)
    with pytest.raises(CheckpointError, match=r"no version 7; there are: 2, 9, 10$"):
        store.find(Path("photos@7"), [root])


def test_a_folder_with_an_at_in_its_name_is_that_folder(root):
    publish(root / "model_store/me@home", "1")
    assert store.find(Path("me@home"), [root]) == root / "model_store/me@home/1"
    assert store.find(Path("me@home@1"), [root]) == root / "model_store/me@home/1"


@pytest.mark.parametrize(
    "versions",
    [["1", "2", "10"], ["1.9", "1.10", "2"], ["2026-02-01", "2026-10-01"], ["a1", "a2", "b1"]],
)
def test_numbers_in_versions_are_compared_as_numbers(tmp_path, versions):
    publish(tmp_path, *reversed(versions))
    assert store.versions(tmp_path) == versions


def test_only_what_is_published_is_a_version(root):
    photos = root / "model_store/photos"
    (photos / "11").mkdir()  # its manifest is still on its way
    publish(photos, ".12-partial", "Old")
    (photos / "notes.txt").write_text("")
    assert store.versions(photos) == ["2", "9", "10"]
    assert store.versions(root / "nowhere") == []


def test_a_fingerprint_tells_what_changed_and_nothing_else(root):
    directory = root / "model_store/photos/9"
    (directory / "golden").mkdir()
    (directory / "golden/image.png").write_bytes(b"1")
    seen = [store.fingerprint(directory)]
    assert store.fingerprint(directory) == seen[0]
    (directory / "golden/image.png").write_bytes(b"12")
    seen.append(store.fingerprint(directory))
    os.utime(directory / "golden/image.png", ns=(0, 0))
    seen.append(store.fingerprint(directory))
    (directory / "golden/image.png").unlink()
    seen.append(store.fingerprint(directory))
    shutil.rmtree(directory)
    seen.append(store.fingerprint(directory))
    assert len(set(seen)) == 5


def test_a_link_that_leads_elsewhere_is_another_checkpoint(root):
    link, photos = root / "current", root / "model_store/photos"
    link.symlink_to(photos / "9")
    before = store.fingerprint(link)
    link.unlink()
    link.symlink_to(photos / "10")
    assert store.fingerprint(link) != before
