import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.captioner import checkpoint
from app.captioner.errors import CheckpointError
from tiny import save_tiny_checkpoint, tiny_unpublished


@pytest.fixture
def directory(tmp_path):
    return save_tiny_checkpoint(tmp_path)


def edit_manifest(directory, **changes):
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rehash(directory, name):
    """Make the manifest agree with a file that was changed, as an attacker or a script would."""
    files = json.loads((directory / "manifest.json").read_text())["files"]
    sha256 = checkpoint.hashlib.sha256((directory / name).read_bytes()).hexdigest()
    edit_manifest(directory, files={**files, name: sha256})


def test_what_was_saved_is_what_is_loaded(directory):
    loaded, source = checkpoint.load(directory), tiny_unpublished()
    assert loaded.vocabulary == source.vocabulary
    assert loaded.manifest.architecture == source.manifest.architecture
    assert not loaded.network.training
    for name, tensor in source.network.state_dict().items():
        expected = tensor.half().float() if tensor.ndim > 1 else tensor
        torch.testing.assert_close(loaded.network.state_dict()[name], expected, rtol=0, atol=0)


def test_a_published_directory_never_changes(directory):
    with pytest.raises(CheckpointError, match="publish under a new version"):
        save_tiny_checkpoint(directory.parent.parent)


def test_every_file_is_listed_with_its_hash(directory):
    found = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert found - {"manifest.json"} == set(checkpoint.read_manifest(directory).files)


@pytest.mark.parametrize("name", ["weights.safetensors", "vocabulary.json", "golden/image.png"])
def test_a_changed_file_is_refused(directory, name):
    with (directory / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(CheckpointError, match=r"sha256 .* expects .* copy it again"):
        checkpoint.load(directory)


@pytest.mark.parametrize("name", ["weights.safetensors", "vocabulary.json", "CARD.md"])
def test_a_missing_file_is_refused(directory, name):
    (directory / name).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        checkpoint.load(directory)


@pytest.mark.parametrize("name", ["weights.safetensors", "vocabulary.json"])
def test_a_file_that_the_manifest_does_not_vouch_for_is_refused(directory, name):
    files = checkpoint.read_manifest(directory).files
    edit_manifest(directory, files={each: sha for each, sha in files.items() if each != name})
    with pytest.raises(CheckpointError, match=f"does not list {name}"):
        checkpoint.load(directory)


def test_a_directory_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no manifest\.json there"):
        checkpoint.load(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"format_version": 1}'])
def test_a_manifest_that_is_none_is_refused(directory, content):
    (directory / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a manifest"):
        checkpoint.load(directory)


def test_a_newer_format_is_refused(directory):
    edit_manifest(directory, format_version=2)
    with pytest.raises(CheckpointError, match="format 2 is newer than 1"):
        checkpoint.load(directory)


def test_another_tokeniser_is_refused(directory):
    edit_manifest(directory, tokeniser="ptb")
    with pytest.raises(CheckpointError, match="tokeniser 'ptb' is unknown"):
        checkpoint.load(directory)


def test_a_pickle_is_refused_even_when_nobody_lists_it(directory):
    (directory / "weights.pt").write_bytes(pickle.dumps({}))
    with pytest.raises(CheckpointError, match=r"never loaded, remove weights\.pt"):
        checkpoint.load(directory)


def test_a_pickle_in_the_place_of_the_weights_is_refused(directory):
    (directory / "weights.safetensors").write_bytes(pickle.dumps({"a": 1}))
    rehash(directory, "weights.safetensors")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        checkpoint.load(directory)


def test_a_weight_of_another_shape_is_refused(directory):
    path = directory / "weights.safetensors"
    tensors = load_file(path)
    tensors["decoder.words.bias"] = torch.zeros(3)
    save_file(tensors, path)
    rehash(directory, path.name)
    with pytest.raises(CheckpointError, match=r"decoder\.words\.bias of shape \(3,\).* \(16,\)"):
        checkpoint.load(directory)


def test_a_vocabulary_of_another_size_is_refused(directory):
    path = directory / "vocabulary.json"
    words = json.loads(path.read_text())["words"]
    path.write_text(json.dumps({"words": words[:-1]}))
    rehash(directory, path.name)
    with pytest.raises(CheckpointError, match=r"expects 16 words, vocabulary\.json has 15"):
        checkpoint.load(directory)


def test_a_manifest_cannot_reach_outside_its_directory(directory):
    outside = directory.parent / "secret"
    outside.write_text("x")
    files = checkpoint.read_manifest(directory).files
    sha256 = checkpoint.hashlib.sha256(b"x").hexdigest()
    edit_manifest(directory, files={**files, "../secret": sha256})
    with pytest.raises(CheckpointError, match="secret is missing"):
        checkpoint.load(directory)


def test_the_public_part_names_what_a_client_may_know(directory):
    manifest = checkpoint.read_manifest(directory)
    public = manifest.public()
    assert public["name"] == "tiny"
    assert public["sha256"] == manifest.files["weights.safetensors"]
    assert not {"recipe", "data", "files"} & set(public)
