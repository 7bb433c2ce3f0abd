"""One rank and several ranks are the same command, and learn the same."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import trainer.training.fit
from support.runs import RECIPE, arguments, fit, log, same_weights, weights
from support.tiny import data_directory
from trainer.__main__ import main
from trainer.training.context import TrainingContext
from trainer.training.distributed import Ranks
from trainer.training.stages import prefetched

EXACT = RECIPE.replace("dropout = 0.1", "dropout = 0.0").replace("images = 2", "images = 3")
HEAD, CACHED, FINE_TUNE = EXACT.split("[[stages]]")
SELF_CRITICAL = """
kind = "self_critical"
epochs = 1
batch_images = 3
"""
AVERAGE = """
kind = "average"
averaged_epochs = 2
"""
STILL = "learning_rate = 1e-12\n"  # ranks draw different samples, what they teach would differ
STAGES = (HEAD, CACHED, SELF_CRITICAL + STILL, FINE_TUNE.replace("= 2", "= 1", 1), AVERAGE)


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def uneven_data(place: Path) -> None:
    """Captions of one word and of many; the last batch of seven images has one for two ranks."""
    data_directory(place / "data", train=7, dev=2)
    lines = (place / "data" / "Flickr8k.token.txt").read_text().splitlines()
    short = [
        f"{line.split(chr(9))[0]}\tSnow ." if n % 4 < 2 else line for n, line in enumerate(lines)
    ]
    (place / "data" / "Flickr8k.token.txt").write_text("\n".join(short) + "\n")


def on_two_ranks(command: list[str]) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    return subprocess.run(
        [sys.executable, *launcher, "trainer", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def killed_after_an_epoch(place: Path, monkeypatch) -> None:
    """Leave a run of one rank with one epoch done."""
    save = TrainingContext.save

    def killed(self, progress):
        save(self, progress)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(TrainingContext, "save", killed)
        with pytest.raises(Killed):
            fit(place, "two")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_of_one_rank_goes_on_with_two_and_learns_the_same(tmp_path, monkeypatch):
    uneven_data(tmp_path)
    (tmp_path / "recipe.toml").write_text("[[stages]]".join(STAGES))
    assert fit(tmp_path, "one") == 0
    killed_after_an_epoch(tmp_path, monkeypatch)
    done = on_two_ranks([*arguments(tmp_path, "two"), "--random-encoder"])
    assert done.returncode == 0, done.stderr
    one, two = log(tmp_path, "one"), log(tmp_path, "two")
    assert [row["kind"] for row in two] == [row["kind"] for row in one]
    assert [row.get("ranks") for row in two] == [None, 2, 2, 2, None]
    for row in (0, 1, 3):
        assert two[row]["train_loss"] == pytest.approx(one[row]["train_loss"], abs=1.1e-4)
        assert two[row]["dev_cider"] == pytest.approx(one[row]["dev_cider"], abs=1e-3)
    assert two[2]["train_reward"] != one[2]["train_reward"]
    apart, together = weights(tmp_path, "one"), weights(tmp_path, "two")
    assert all(torch.allclose(apart[name], together[name], atol=3e-4) for name in apart)
    assert done.stdout.count(str(tmp_path / "two" / "best")) == 1


def test_ranks_without_an_image_are_refused(place, capsys, monkeypatch):
    @contextmanager
    def three(device):
        yield Ranks(device, 0, 3)

    monkeypatch.setattr(trainer.training.fit, "process_group", three)
    assert fit(place, "run") == 1
    assert "stages.0 takes 2 images a step, expected one or more for each of 3 ranks" in (
        capsys.readouterr().err
    )


def test_steps_begin_one_ahead():
    begun = []

    def begin():
        for item in range(3):
            begun.append(item)
            yield item

    assert [(item, list(begun)) for item in prefetched(begin())] == [
        (0, [0, 1]),
        (1, [0, 1, 2]),
        (2, [0, 1, 2]),
    ]


def test_bfloat16_learns_nearly_the_same_and_leaves_weights_alone(place):
    (place / "recipe.toml").write_text(EXACT + "[[stages]]" + SELF_CRITICAL)
    assert fit(place, "single") == 0
    command = [*arguments(place, "half"), "--random-encoder", "--precision", "bfloat16"]
    assert main(command) == 0
    single, half = log(place, "single"), log(place, "half")
    assert {row["precision"] for row in half} == {"bfloat16"}
    assert not same_weights(weights(place, "half"), weights(place, "single"))
    for exact, rounded in zip(single[:4], half[:4], strict=True):
        assert rounded["train_loss"] == pytest.approx(exact["train_loss"], rel=0.01)
    floats = [each for each in weights(place, "half").values() if each.is_floating_point()]
    assert {each.dtype for each in floats} == {torch.float32}
