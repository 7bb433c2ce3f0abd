"""Squares and features: each image file is read as seldom as can be."""

from collections import Counter
from pathlib import Path

import pytest

from app.captioner.manifest import ImageGeometry
from support.tiny import SIZE_PX, data_directory, tiny_network
from trainer.data.arrays import encoded_features, fitted_images
from trainer.data.flickr8k import read_split


@pytest.fixture
def reads(monkeypatch):
    """How often each file was read in full."""
    counts, read = Counter(), Path.read_bytes

    def counted(path: Path) -> bytes:
        counts[path.name] += 1
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    return counts


def prepare(place: Path):
    split = read_split(place / "data", "train")
    images = fitted_images(split, ImageGeometry(size_px=SIZE_PX, fit="squeeze"), place / "cache")
    encoder = tiny_network().encoder
    return split, encoded_features(images, encoder, split, place / "cache")


def test_an_image_is_read_once_for_its_hash_and_once_for_its_pixels(tmp_path, reads):
    data_directory(tmp_path / "data")
    split, features = prepare(tmp_path)
    assert len(split.sha256) == 64
    assert reads == {item.image: 2 for item in split.examples}
    assert features.shape[0] == len(split.examples)


def test_what_is_in_the_cache_is_not_decoded_again(tmp_path, reads):
    data_directory(tmp_path / "data")
    _, first = prepare(tmp_path)
    reads.clear()
    split, again = prepare(tmp_path)
    assert reads == {item.image: 1 for item in split.examples}
    assert (first == again).all()
