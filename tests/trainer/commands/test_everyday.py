"""What people type every day and what goes wrong then: one sentence that leads on."""

import io
import json
import shutil
import sys

import pytest
import torch
from torchvision import models

from app.captioner import checkpoint
from support.runs import RECIPE, arguments, fit
from support.tiny import data_directory, save_tiny_checkpoint
from trainer.__main__ import main, told

FAST = ["stages.0.epochs=1", "stages.1.epochs=1"]


@pytest.fixture
def place(tmp_path):
    data_directory(tmp_path / "data")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def one_line(capsys) -> str:
    said = capsys.readouterr().err
    assert "Traceback" not in said
    lines = [
        line for line in said.split("\r")[-1].splitlines() if line.strip() and "%|" not in line
    ]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "gpu", "tpu:0"])
def test_a_device_that_is_not_here_is_answered_with_those_that_are(place, capsys, device):
    if torch.cuda.is_available() and device == "cuda":
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        main([*arguments(place, "run"), "--random-encoder", "--device", device])
    assert f"no device {device!r}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("verb", ["fit", "prepare", "evaluate"])
def test_a_data_directory_that_does_not_exist_is_told_as_that(place, capsys, verb):
    missing = str(place / "nowhere")
    typed = {
        "fit": ["fit", str(place / "recipe.toml"), "--run", str(place / "run"), "--random-encoder"],
        "prepare": ["prepare"],
        "evaluate": ["evaluate", str(save_tiny_checkpoint(place / "store"))],
    }[verb]
    assert main([*typed, "--data", missing]) == 1
    assert f"{missing} does not exist" in one_line(capsys)


def test_a_source_that_does_not_exist_is_told_as_that(place, capsys):
    assert main(["prepare", "--from", str(place / "no.csv"), "--out", str(place / "out")]) == 1
    assert "no.csv does not exist" in one_line(capsys)


def test_a_run_without_a_checkpoint_is_explained(place, capsys):
    (place / "run").mkdir()
    (place / "run" / "recipe.json").write_text("{}")
    for name in ("run", "run/best"):
        assert main(["publish", str(place / name), "--version", "1"]) == 1
        assert "has no checkpoint yet: its first epoch has not ended" in one_line(capsys)
        assert main(["evaluate", str(place / name), "--data", str(place / "data")]) == 1
        assert "has no checkpoint yet" in one_line(capsys)


def test_the_best_of_a_run_may_be_named_by_the_run_and_by_itself(place):
    best = save_tiny_checkpoint(place / "store")
    (place / "run").mkdir()
    shutil.copytree(best, place / "run" / "best")
    for number, name in enumerate(("run", "run/best")):
        store = ["--store", str(place / f"to{number}"), "--version", "2"]
        assert main(["publish", str(place / name), *store]) == 0
        assert checkpoint.load(place / f"to{number}" / "tiny" / "2").manifest.version == "2"


def test_captions_and_scores_go_into_new_folders_as_text_a_person_reads(place):
    data = place / "data"
    token_file = data / "Flickr8k.token.txt"
    token_file.write_text(token_file.read_text().replace("dog", "köter"), encoding="utf-8")
    assert fit(place, "run", *FAST, "search.min_words=8") == 0
    out = place / "new" / "folder"
    files = ["--captions", str(out / "c.jsonl"), "--json", str(out / "scores.json")]
    checkpoint_and_data = [str(place / "run"), "--data", str(data), "--split", "train"]
    assert main(["evaluate", *checkpoint_and_data, *files]) == 0
    lines = (out / "c.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4
    assert all("\\u" not in line for line in lines)
    assert json.loads((out / "scores.json").read_text())["tokeniser"] == "lower-alphanumeric"


def pth(place, content) -> list[str]:
    torch.save(content, place / "weights.pth")
    return ["--encoder-weights", str(place / "weights.pth")]


@pytest.mark.parametrize("wrapped", [False, True], ids=["torchvision", "in a training state"])
def test_weights_of_torch_save_are_read(place, wrapped):
    state = models.mobilenet_v2(weights=None).state_dict()
    content = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
    assert main([*arguments(place, "run", *FAST), *pth(place, content if wrapped else state)]) == 0


class Harm:
    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


@pytest.mark.parametrize(
    "content", [Harm(), [1, 2], {"epoch": 3}], ids=["code", "list", "no state"]
)
def test_a_file_that_holds_no_weights_is_refused_and_never_run(place, capsys, content):
    assert main([*arguments(place, "run", *FAST), *pth(place, content)]) == 1
    assert "state dict" in one_line(capsys)


def test_a_fault_of_the_system_is_one_line_with_its_file(place, capsys):
    blocked = place / "a file"
    blocked.write_text("")
    assert main([*arguments(place, "a file/run"), "--random-encoder"]) == 1
    assert "a file" in one_line(capsys)


def test_a_fault_of_a_library_is_one_line_unless_asked(place, capsys, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("out of something\nmany lines more")

    monkeypatch.setattr("trainer.commands.fit.fit", fail)
    assert main([*arguments(place, "run"), "--random-encoder"]) == 1
    assert one_line(capsys).startswith("fit: out of something (RuntimeError")
    with pytest.raises(RuntimeError):
        main(["--traceback", *arguments(place, "run"), "--random-encoder"])


def test_ctrl_c_is_no_traceback(place, capsys, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.commands.fit.fit", stop)
    assert main([*arguments(place, "run"), "--random-encoder"]) == 130
    assert "the same command goes on" in one_line(capsys)


def test_a_square_that_no_network_takes_is_refused(place, capsys):
    assert main(["prepare", "--data", str(place / "data"), "--size-px", "8"]) == 1
    assert "--size-px is 8" in one_line(capsys)


def test_a_terminal_that_knows_few_letters_is_no_reason_to_fail(place, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    (place / "Käfer.csv").write_text("image,caption\n" + "train0.png,Ein Käfer\n" * 2)
    typed = ["--images", str(place / "data" / "Flicker8k_Dataset"), "--out", str(place / "o")]
    assert main(["prepare", "--from", str(place / "Käfer.csv"), *typed]) == 1
    terminal.flush()
    assert b"K\\xe4fer.csv is read as csv" in terminal.buffer.getvalue()


def test_an_error_without_words_says_its_name():
    assert told(OSError()).startswith("OSError (OSError")


def test_a_library_that_is_missing_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("trainer.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu_scorer", None)
    with pytest.raises(SystemExit, match=r"pip install 'caption-service\[train\]'"):
        __import__("trainer.__main__")
