import json
import math
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.captioner import checkpoint
from app.captioner.errors import CheckpointError
from app.captioner.model import torch_checkpoint
from app.captioner.vocabulary import Sentences, Vocabulary
from support.tiny import save_tiny_checkpoint, tiny_unpublished


@pytest.fixture(name="directory")
def own_directory(directory, tmp_path):
    """Give a copy that a test may spoil."""
    return shutil.copytree(directory, tmp_path / "tiny/1")


def edit_manifest(directory, **changes):
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rehash(directory, name):
    """Make the manifest agree with a file that was changed, as an attacker or a script would."""
    files = json.loads((directory / "manifest.json").read_text())["files"]
    sha256 = checkpoint.hashlib.sha256((directory / name).read_bytes()).hexdigest()
    edit_manifest(directory, files={**files, name: sha256})


def test_what_was_saved_is_what_is_loaded(directory):
    loaded, source = torch_checkpoint.load(directory), tiny_unpublished()
    assert loaded.vocabulary == source.vocabulary
    assert loaded.manifest.architecture == source.manifest.architecture
    assert not loaded.network.training
    for name, tensor in source.network.state_dict().items():
        expected = tensor.half().float() if tensor.ndim > 1 else tensor
        torch.testing.assert_close(loaded.network.state_dict()[name], expected, rtol=0, atol=0)


def test_words_of_another_tokeniser_and_how_they_are_written_come_back(tmp_path):
    source = tiny_unpublished()
    written = Sentences(capital=True, end=".", forms={"dog": "Dog"})
    words = ("l'", "कुत्ता", *source.vocabulary.words[2:])
    vocabulary = Vocabulary(words, "unicode-words-1", written)
    torch_checkpoint.save(tmp_path / "1", source._replace(vocabulary=vocabulary))
    loaded = checkpoint.load(tmp_path / "1")
    assert loaded.vocabulary == vocabulary
    assert loaded.manifest.tokeniser == "unicode-words-1"


@pytest.mark.parametrize(
    "sentences",
    [
        *([], 7, {}, {"capital": 1, "end": ".", "forms": {}}),
        {"capital": True, "end": "<b>", "forms": {}},
        {"capital": True, "end": ".", "forms": {"dog": "<b>dog</b>"}},
    ],
)
def test_sentences_that_nobody_writes_are_refused(directory, sentences):
    words = json.loads((directory / "vocabulary.json").read_text())["words"]
    content = json.dumps({"words": words, "sentences": sentences}).encode()
    replace(directory, "vocabulary.json", content)
    refused(directory, "vocabulary.json is not a vocabulary")


def test_a_published_directory_never_changes(directory):
    with pytest.raises(CheckpointError, match="publish under a new version"):
        save_tiny_checkpoint(directory.parent.parent)


def test_every_file_is_listed_with_its_hash(directory):
    found = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert found - {"manifest.json"} == set(checkpoint.read_manifest(directory).files)


NEEDED = ["weights.safetensors", "vocabulary.json", "graphs/encode.xml", "graphs/step.xml"]


@pytest.mark.parametrize("name", [*NEEDED, "golden/image.png"])
def test_a_changed_file_is_refused(directory, name):
    with (directory / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(CheckpointError, match=r"sha256 .* expects .* copy it again"):
        checkpoint.load(directory)


@pytest.mark.parametrize("name", [*NEEDED, "CARD.md"])
def test_a_missing_file_is_refused(directory, name):
    (directory / name).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        checkpoint.load(directory)


@pytest.mark.parametrize("name", NEEDED)
def test_a_file_that_the_manifest_does_not_vouch_for_is_refused(directory, name):
    files = checkpoint.read_manifest(directory).files
    edit_manifest(directory, files={each: sha for each, sha in files.items() if each != name})
    with pytest.raises(CheckpointError, match=f"does not list {name}"):
        checkpoint.load(directory)


def test_a_directory_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no manifest\.json there"):
        checkpoint.load(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"format_version": 2}'])
def test_a_manifest_that_is_none_is_refused(directory, content):
    (directory / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a manifest"):
        checkpoint.load(directory)


def test_a_newer_format_is_refused(directory):
    edit_manifest(directory, format_version=3)
    with pytest.raises(CheckpointError, match="format 3 is newer than 2"):
        checkpoint.load(directory)


def test_the_format_before_is_refused_with_the_command_that_converts_it(directory):
    edit_manifest(directory, format_version=1)
    command = f"python -m trainer convert {directory} --version NEW"
    for read in (checkpoint.load, checkpoint.read_manifest):
        with pytest.raises(CheckpointError, match=r"format 1 .* convert it") as refusal:
            read(directory)
        assert command in str(refusal.value)


def test_an_architecture_may_use_the_name_that_an_option_had_before(directory):
    about = checkpoint.read_manifest(directory).architecture.model_dump(mode="json")
    del about["global_feature"]
    edit_manifest(directory, architecture={**about, "whole_image": True})
    architecture = checkpoint.read_manifest(directory).architecture
    assert architecture.global_feature
    assert "whole_image" not in architecture.model_dump()


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
        torch_checkpoint.load(directory)


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
    with pytest.raises(CheckpointError, match="is not a manifest: files"):
        checkpoint.load(directory)


def test_the_public_part_names_what_a_client_may_know(directory):
    manifest = checkpoint.read_manifest(directory)
    public = manifest.public()
    assert public["name"] == "tiny"
    assert public["sha256"] == manifest.files["weights.safetensors"]
    assert not {"recipe", "data", "files"} & set(public)


# --- from strangers -----------------------------------------------------------------------------


def replace(directory, name, content):
    """Exchange a file together with its hash."""
    (directory / name).write_bytes(content)
    rehash(directory, name)


def refused(directory, reason, load=checkpoint.load):
    """Expect one short line that a terminal may show."""
    with pytest.raises(CheckpointError, match=reason) as refusal:
        load(directory)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 1100
    return str(refusal.value)


@pytest.mark.parametrize("name", ["golden/image.png", "golden/caption.json"])
def test_a_golden_file_that_nobody_vouches_for_is_refused(directory, name):
    files = checkpoint.read_manifest(directory).files
    edit_manifest(directory, files={each: sha for each, sha in files.items() if each != name})
    refused(directory, f"does not list {name}")
    (directory / name).unlink()
    refused(directory, f"does not list {name}")


def test_a_golden_sample_that_is_there_but_not_listed_is_refused(directory):
    files = checkpoint.read_manifest(directory).files
    listed = {name: sha for name, sha in files.items() if not name.startswith("golden/")}
    edit_manifest(directory, files=listed)
    refused(directory, "does not list golden/")
    for path in (directory / "golden").iterdir():
        path.unlink()
    assert checkpoint.load(directory).golden is None


def test_the_golden_sample_is_what_was_verified(directory):
    golden = checkpoint.load(directory).golden
    assert golden.image == (directory / "golden/image.png").read_bytes()
    told = json.loads((directory / "golden/caption.json").read_text())
    assert golden.said.model_dump(mode="json") == told


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"[" * 10_000, b'{"caption": "a", "log_prob": NaN}'),
        *(b'{"caption": "A dog", "log_prob": -1}', b'{"caption": "<b>", "log_prob": -1}'),
    ],
)
def test_a_golden_caption_that_is_none_is_refused(directory, content):
    replace(directory, "golden/caption.json", content)
    refused(directory, "is no golden caption")


@pytest.mark.parametrize("name", ["manifest.json", "weights.safetensors", "graphs/step.xml"])
@pytest.mark.parametrize("kind", ["/dev/zero", "/etc/hostname", "pipe", "folder", "itself"])
def test_only_regular_files_inside_the_directory_are_read(directory, name, kind):
    path = directory / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.name if kind == "itself" else kind)
    refused(directory, f"{name} (is no regular file|is missing|leads out of the directory)")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("manifest.json", 2**22 + 1),
        ("vocabulary.json", 2**25 + 1),
        ("golden/caption.json", 2**16 + 1),
        ("golden/image.png", 2**24 + 1),
        ("CARD.md", 2**24 + 1),
        ("graphs/encode.xml", 2**24 + 1),
        ("weights.safetensors", 2**40),
    ],
)
def test_a_file_larger_than_it_can_be_is_not_read(directory, name, size):
    with (directory / name).open("r+b") as file:
        file.truncate(size)
    refused(directory, rf"{name} has {size} bytes, expected at most \d+")


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 10**6,
        b'{"format_version":' * 9999,
        b'{"format_version": ' + b"9" * 5000 + b"}",
        b'{"format_version": 1, "format_version": 1}',
        b'{"name": "\\ud800"}',
        b'{"\\u001b[2J<script>": 1}',
        b'{"<script>": 1}',
        b'{"' + b"x" * 10**6 + b'": 1}',
        b"[" + b"[]," * 300_000 + b"1]",
    ],
)
def test_an_absurd_manifest_is_refused_in_a_short_line(directory, content):
    (directory / "manifest.json").write_bytes(content)
    refused(directory, "is not a manifest")


def test_characters_of_a_manifest_are_escaped_where_they_are_told(directory):
    edit_manifest(directory, tokeniser="a\u00adb\ufffe" + "c" * 5000)
    assert r"\xad" in refused(directory, "is unknown")


@pytest.mark.parametrize(
    "words",
    [
        "abc",
        {"a": 1},
        [7],
        [None],
        [["a"]],
        ["<b>"],
        ["\ud800"],
        ["a\x1b[31m"],
        [""],
        ["a"] * 12,
        7,
    ],
)
def test_a_vocabulary_that_is_none_is_refused(directory, words):
    replace(directory, "vocabulary.json", json.dumps({"words": words}).encode())
    refused(directory, "is not a vocabulary")


def test_a_vocabulary_of_more_words_than_the_network_has_is_not_parsed(directory):
    replace(directory, "vocabulary.json", json.dumps({"words": ["a"] * 10**6}).encode())
    refused(directory, "expected at most 148 values")


@pytest.mark.parametrize(
    ("width", "reason"),
    [(8192, r"the architecture has \d+ parameters, at most"), (17, "the architecture expects")],
)
def test_weights_are_held_against_the_architecture(directory, width, reason):
    about = checkpoint.read_manifest(directory).architecture.model_dump(mode="json")
    edit_manifest(directory, architecture={**about, "hidden_width": width})
    refused(directory, reason, torch_checkpoint.load)


def test_a_pickle_is_refused_whatever_its_case_and_wherever_it_lies(directory):
    (directory / "golden/deep").mkdir()
    (directory / "golden/deep/\x1b[2J.PKL").touch()
    assert r"\x1b[2J.PKL" in refused(directory, "never loaded, remove")


def test_numbers_that_training_made_none_are_written_and_read(tmp_path):
    unpublished = tiny_unpublished()
    rows = [{"epoch": 0, "loss": math.nan}]
    manifest = unpublished.manifest.model_copy(update={"history": rows})
    torch_checkpoint.save(tmp_path / "best", unpublished._replace(manifest=manifest))
    assert checkpoint.load(tmp_path / "best").manifest.history == [{"epoch": 0, "loss": None}]


def test_numbers_that_are_none_do_not_break_what_a_client_is_shown(directory):
    edit_manifest(directory, scores={"dev": {"cider": math.inf, "bleu_4": [math.nan]}})
    shown = checkpoint.load(directory).manifest.public()
    assert json.loads(json.dumps(shown, allow_nan=False))["scores"] == {
        "dev": {"cider": None, "bleu_4": [None]}
    }
