"""Clips: directories of frames in place of image files."""

import shutil

import numpy as np
import pytest

from app.captioner.manifest import ImageGeometry
from support.tiny import clip_directory, data_directory, photo, tiny_network
from trainer.data.arrays import encoded_features, fitted_images, image_or_clip, open_images
from trainer.data.clips import frame_files
from trainer.data.flickr8k import read_split, still_of
from trainer.data.sharding import write_shards
from trainer.errors import DataError

SQUARE = ImageGeometry(size_px=32, fit="squeeze")


@pytest.fixture
def data(tmp_path):
    return clip_directory(tmp_path / "data", frames=5)


def clip(data, name="train0"):
    return data / "Flicker8k_Dataset" / name


def test_a_directory_of_frames_stands_in_place_of_an_image(data):
    split = read_split(data, "train")
    assert split.of_clips
    assert [each.path.name for each in split.examples] == ["train0", "train1", "train2", "train3"]
    assert still_of(split.examples[0]).name == "002.png"


def test_frames_come_in_the_order_of_their_numbers(tmp_path):
    for name in ("10.png", "9.png", "frame2.png", "1.JPG", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    names = [path.name for path in frame_files(tmp_path)]
    assert names == ["1.JPG", "9.png", "10.png", "frame2.png"]


def test_the_hash_knows_frames_and_their_order(data):
    before = read_split(data, "train").sha256
    assert read_split(data, "train").sha256 == before
    (clip(data) / "000.png").rename(clip(data) / "009.png")
    moved = read_split(data, "train").sha256
    (clip(data) / "009.png").write_bytes(photo(50))
    assert len({before, moved, read_split(data, "train").sha256}) == 3


def test_a_clip_without_a_frame_is_refused(data):
    for path in clip(data, "train2").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="train2 holds no frame: put images there"):
        read_split(data, "train")


def test_images_and_clips_do_not_mix(data):
    shutil.rmtree(clip(data, "train1"))
    clip(data, "train1").write_bytes(photo(1))
    with pytest.raises(DataError, match=r"images and clips, expected one kind.*train1"):
        read_split(data, "train")


def test_a_broken_frame_is_named(data):
    (clip(data) / "003.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"train0/003\.png cannot be used"):
        image_or_clip(clip(data), SQUARE, 5)


@pytest.mark.parametrize(("count", "chosen"), [(3, [0, 2, 4]), (5, [0, 1, 2, 3, 4])])
def test_of_many_frames_some_are_chosen_evenly(data, tmp_path, count, chosen):
    split = read_split(data, "train")
    clips = fitted_images(split, SQUARE, tmp_path / "cache", count)
    assert clips.shape == (4, count, 3, 32, 32)
    for place, n in enumerate(chosen):
        expected = image_or_clip(clip(data) / f"{n:03}.png", SQUARE, 1).transpose(2, 0, 1)
        np.testing.assert_array_equal(clips[0, place], expected)


def test_of_few_frames_some_come_repeatedly(data):
    shown = image_or_clip(clip(data), SQUARE, 9)
    for n in range(5):
        np.testing.assert_array_equal(shown[2 * n], image_or_clip(clip(data), SQUARE, 5)[n])
    np.testing.assert_array_equal(shown[0], shown[1])


def test_another_number_of_frames_is_cached_apart(data, tmp_path):
    split = read_split(data, "train")
    for count in (2, 4):
        assert fitted_images(split, SQUARE, tmp_path / "cache", count).shape[1] == count
    assert len(list((tmp_path / "cache").glob("images-*.npy"))) == 2


def test_a_network_of_images_reads_no_clips_and_the_other_way_round(data, tmp_path):
    with pytest.raises(DataError, match=r"train holds clips.*set network\.frames"):
        open_images(read_split(data, "train"), SQUARE, tmp_path / "cache")
    photos = read_split(data_directory(tmp_path / "photos"), "train")
    with pytest.raises(DataError, match=r"holds images.*leave out network\.frames"):
        open_images(photos, SQUARE, tmp_path / "cache", 4)


@pytest.mark.parametrize(("frames", "regions"), [("mean", 9), ("lstm", 4)])
def test_features_of_clips_have_frames_and_regions(data, tmp_path, frames, regions):
    split = read_split(data, "dev")
    geometry = ImageGeometry(size_px=96, fit="squeeze")
    clips = fitted_images(split, geometry, tmp_path / "cache", 3)
    encoder = tiny_network(frames=frames, frames_per_clip=3).encoder
    features = encoded_features(clips, encoder, split, tmp_path / "cache")
    assert features.shape == (2, 3, regions, 1280)


def test_clips_do_not_go_into_shards(data, tmp_path):
    with pytest.raises(DataError, match="holds clips, and shards hold images"):
        list(write_shards(data, tmp_path / "shards", images_per_shard=2))
