"""What a version before 0.2.0 wrote is converted, and says what it said."""

import hashlib
import json

import pytest
from safetensors.torch import save

from app.captioner import checkpoint
from app.captioner.errors import CheckpointError
from app.captioner.pipeline import Captioner
from support.tiny import captioner_of, photo, tiny_unpublished
from trainer.__main__ import main
from trainer.publishing.format_1 import load_format_1

SOURCE = tiny_unpublished(global_feature=True)


def old_weights():
    state = {
        name.replace("decoder.global_feature.", "decoder.whole."): (
            tensor.half() if tensor.ndim > 1 else tensor
        )
        for name, tensor in SOURCE.network.state_dict().items()
    }
    assert "decoder.whole.weight" in state
    return save(state)


@pytest.fixture
def old(tmp_path):
    """Write a directory as version 0.1 did."""
    directory = tmp_path / "tiny/4"
    directory.mkdir(parents=True)
    files = {
        "weights.safetensors": old_weights(),
        "vocabulary.json": json.dumps({"words": SOURCE.vocabulary.words}).encode(),
        "CARD.md": b"# tiny, version 4\n\nOf the old days.\n",
    }
    fields = SOURCE.manifest.model_dump(mode="json")
    fields["format_version"], fields["version"] = 1, "4"
    del fields["image"]["resampling"]
    fields["architecture"]["whole_image"] = fields["architecture"].pop("global_feature")
    fields["files"] = {name: hashlib.sha256(each).hexdigest() for name, each in files.items()}
    for name, content in {**files, "manifest.json": json.dumps(fields).encode()}.items():
        (directory / name).write_bytes(content)
    return directory


def convert(directory, tmp_path):
    store = str(tmp_path / "store")
    return main(["convert", str(directory), "--version", "5", "--store", store])


def said(captioner):
    images = [captioner.read(photo(seed), max_pixels=10_000) for seed in range(3)]
    return [[each.text for each in image] for image in captioner.caption(images).captions]


def test_a_converted_checkpoint_says_the_same(old, tmp_path, capsys):
    with pytest.raises(CheckpointError, match="python -m trainer convert"):
        checkpoint.load(old)
    assert convert(old, tmp_path) == 0
    directory = tmp_path / "store/tiny/5"
    assert capsys.readouterr().out.strip() == str(directory)
    captioner = Captioner.load(directory, precision="float32")
    captioner.check_golden()
    assert captioner.manifest.format_version == 2
    assert captioner.manifest.architecture.global_feature
    assert said(captioner) == said(captioner_of(SOURCE))


def test_the_card_is_kept_and_tells_of_the_conversion(old, tmp_path):
    assert convert(old, tmp_path) == 0
    card = (tmp_path / "store/tiny/5/CARD.md").read_text()
    assert card.startswith("# tiny, version 5\n\nOf the old days.\n")
    assert "The weights are those of version 4." in card


def test_a_checkpoint_of_today_needs_no_conversion(old, tmp_path, capsys):
    assert convert(old, tmp_path) == 0
    assert main(["convert", str(tmp_path / "store/tiny/5"), "--version", "6"]) == 1
    assert "format 2 needs no conversion" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["weights.safetensors", "vocabulary.json", "CARD.md"])
def test_a_changed_file_is_not_converted(old, tmp_path, capsys, name):
    with (old / name).open("ab") as file:
        file.write(b" ")
    assert convert(old, tmp_path) == 1
    assert f"{name} is not the file that manifest.json lists" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"7", b'{"format_version": 1}'])
def test_a_manifest_that_is_none_is_refused(old, content):
    (old / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError):
        load_format_1(old)


@pytest.mark.parametrize(
    "content", [b"pickle", save({}), save({"a": next(iter(SOURCE.network.state_dict().values()))})]
)
def test_weights_of_another_network_are_refused(old, content):
    (old / "weights.safetensors").write_bytes(content)
    fields = json.loads((old / "manifest.json").read_text())
    fields["files"]["weights.safetensors"] = hashlib.sha256(content).hexdigest()
    (old / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError):
        load_format_1(old)


def test_where_nothing_lies_nothing_is_converted(tmp_path, capsys):
    assert convert(tmp_path / "nowhere", tmp_path) == 1
    assert "No such file" in capsys.readouterr().err
