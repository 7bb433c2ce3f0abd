"""Shards: WebDataset's tar files in place of a directory, and nothing is unpacked."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from app.captioner import checkpoint
from support.runs import arguments, log, same_weights, weights
from support.tiny import photo
from trainer.__main__ import main
from trainer.data.flickr8k import read_split
from trainer.errors import DataError

ONE_EPOCH = ("stages.0.epochs=1", "stages.1.epochs=1")


def make_shards(place: Path) -> int:
    command = ["prepare", "--data", str(place / "data"), "--shards", str(place / "shards")]
    return main([*command, "--images-per-shard", "3"])


def write_tar(path: Path, **members: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("__", "/").replace("_", "."))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_shards_train_what_the_directory_trains(place):
    assert make_shards(place) == 0
    names = sorted(path.name for path in (place / "shards").iterdir())
    assert names == ["dev-000000.tar", "train-000000.tar", "train-000001.tar"]
    sharded = [*arguments(place, "sharded", *ONE_EPOCH), "--random-encoder"]
    sharded[sharded.index(str(place / "data"))] = str(place / "shards")
    assert main(sharded) == 0
    assert not list((place / "cache").glob("images-*"))
    assert main([*arguments(place, "whole", *ONE_EPOCH), "--random-encoder"]) == 0
    assert same_weights(weights(place, "sharded"), weights(place, "whole"))
    for one, other in zip(log(place, "sharded"), log(place, "whole"), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    manifests = [checkpoint.read_manifest(place / run / "best") for run in ("sharded", "whole")]
    assert manifests[0].data == manifests[1].data
    best = str(place / "sharded" / "best")
    assert main(["evaluate", best, "--data", str(place / "shards"), "--device", "cpu"]) == 0


def test_a_hash_beside_an_image_spares_reading_it(place):
    assert make_shards(place) == 0
    whole, sharded = read_split(place / "data", "train"), read_split(place / "shards", "train")
    assert [item.image for item in sharded.examples] == [item.image for item in whole.examples]
    members = [item.path.name for item in sharded.examples]
    assert members == [f"00000000{number}.png" for number in range(4)]
    for path in (place / "shards").glob("train-*.tar"):
        content = path.read_bytes()
        for example in sharded.examples:
            content = content.replace(example.path.read_bytes(), bytes(example.path.size_bytes))
        path.write_bytes(content)
    assert sharded.sha256 == whole.sha256


@pytest.mark.parametrize(
    "members",
    [
        {"a_jpg": b"pixels", "a_json": b'{"caption": "A dog .", "sha256": null}'},
        {"a_jpg": b"pixels", "a_txt": b"A dog .\n"},
        {"._a": b"mac", "a_JPG": b"pixels", "a_cls": b"7", "a_json": b'{"captions": ["A dog ."]}'},
    ],
)
def test_shards_written_elsewhere_are_read(tmp_path, members):
    write_tar(tmp_path / "train-00.tar", **members)
    write_tar(tmp_path / "train-01.tar", **members)
    first, second = read_split(tmp_path, "train").examples
    assert first.image.lower() == "train-00.tar/a.jpg"
    assert second.image.lower() == "train-01.tar/a.jpg"
    assert first.captions == ("A dog .",)
    assert first.path.read_bytes() == b"pixels"
    assert len(read_split(tmp_path, "train").sha256) == 64


NAMED = json.dumps({"image": "a.jpg", "captions": ["A dog ."]}).encode()


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"a_jpg": b"pixels"}, "a: expected one image in .jpg, .jpeg, .png, .webp, and captions"),
        ({"a_txt": b"A dog ."}, "got .txt"),
        ({"a_jpg": b"1", "a_png": b"2", "a_txt": b"A dog ."}, "expected one image"),
        ({"a_jpg": b"1", "a_json": b"{"}, "a.json: is no JSON"),
        ({"a_jpg": b"1", "a_json": b"[]"}, "a.json: expected an object"),
        ({"a_jpg": b"1", "a_json": b'{"captions": [" "]}'}, "one is empty"),
        ({"a_jpg": b"1", "a_json": b'{"captions": [7]}'}, "expected one image"),
        ({"a_jpg": b"1", "a_txt": b"\xff"}, "is not UTF-8"),
        ({"a_jpg": b"1", "a_json": NAMED, "b_jpg": b"2", "b_json": NAMED}, "2 images under 1"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named(tmp_path, members, reason):
    write_tar(tmp_path / "train-0.tar", **members)
    with pytest.raises(DataError, match=r"train-0\.tar") as caught:
        read_split(tmp_path, "train")
    assert reason in str(caught.value)


def test_a_shard_cut_short_is_refused(tmp_path):
    write_tar(tmp_path / "train-0.tar", a_jpg=b"pixels" * 1000, a_txt=b"A dog .")
    content = (tmp_path / "train-0.tar").read_bytes()
    (tmp_path / "train-0.tar").write_bytes(content[:3000])
    with pytest.raises(DataError, match="cannot be read as tar"):
        read_split(tmp_path, "train")


def test_a_broken_image_in_a_shard_is_named(place, capsys):
    (place / "data" / "Flicker8k_Dataset" / "train1.png").write_bytes(photo()[:100])
    assert make_shards(place) == 0
    command = [*arguments(place, "run", *ONE_EPOCH), "--random-encoder"]
    command[command.index(str(place / "data"))] = str(place / "shards")
    assert main(command) == 1
    assert "train-000000.tar:000000001.png cannot be used" in capsys.readouterr().err


def test_shards_are_not_written_over(place, capsys):
    assert make_shards(place) == 0
    assert make_shards(place) == 1
    assert "exists: name a new directory" in capsys.readouterr().err


def test_shards_need_a_data_directory(place, capsys):
    command = ["prepare", "--from", str(place / "captions.csv"), "--shards", str(place / "shards")]
    assert main(command) == 1
    assert "--shards expects --data DIR" in capsys.readouterr().err
