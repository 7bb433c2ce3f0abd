"""Stages beyond cross-entropy: self-critical, averages, another start."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from app.captioner import checkpoint
from app.captioner.model import torch_checkpoint
from support.runs import RECIPE, arguments, fit, log, same_weights, weights
from trainer.__main__ import main
from trainer.scoring.metrics import Estimate
from trainer.training.averaging import MovingAverage
from trainer.training.context import TrainingContext
from trainer.training.stages import StageTrainer

HEAD = RECIPE[: RECIPE.index("[[stages]]")]
STEPS = "batch_images = 2\nlearning_rate = 0.005\nwarmup_steps = 0\n"
CACHED = '\n[[stages]]\nkind = "cached"\nepochs = {}\n' + STEPS
SELF_CRITICAL = '\n[[stages]]\nkind = "self_critical"\nepochs = 2\n' + STEPS
TUNED = "unfrozen_blocks = 1\nencoder_learning_rate = 0.001\n"
AVERAGE = '\n[[stages]]\nkind = "average"\naveraged_epochs = 2\naveraged_by = "{}"\n'


def write_stages(place: Path, *stages: str) -> None:
    (place / "recipe.toml").write_text(HEAD + "".join(stages))


def state(place: Path) -> dict:
    return torch.load(place / "run" / "state.pt", weights_only=True)


def best(place: Path, run: str = "run") -> dict[str, torch.Tensor]:
    return torch_checkpoint.load(place / run / "best").network.state_dict()


def halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: each.half().float() if each.ndim > 1 else each for name, each in state.items()}


@pytest.fixture
def pretend(monkeypatch):
    """Let dev CIDEr be what the test says, epoch by epoch."""

    def set_values(*values: float) -> None:
        left, real = list(values), TrainingContext.dev_scores

        def scored(self, features):
            value = left.pop(0)
            found = real(self, features)
            cider = Estimate(value, value, value)
            return found._replace(
                sets={n: dataclasses.replace(each, cider=cider) for n, each in found.sets.items()}
            )

        monkeypatch.setattr(TrainingContext, "dev_scores", scored)

    return set_values


def test_when_dev_falls_the_best_weights_come_back_at_half_the_rate(place, pretend):
    write_stages(place, CACHED.format(1), SELF_CRITICAL)
    pretend(0.5, 0.48, 0.4)  # the margin is 0.03
    assert fit(place, "run") == 0
    rows = log(place, "run")
    assert ["reverted" in row for row in rows] == [False, False, True]
    assert all(0 <= row["train_reward"] <= 10 for row in rows[1:])
    assert all(0 <= row["dev_bad_endings_percent"] <= 100 for row in rows)
    kept = state(place)
    assert kept["progress"]["rate_factor"] == 0.5
    assert not kept["progress"]["optimiser"]["state"]
    assert same_weights(kept["network"], best(place))


def test_a_stage_ends_early_when_dev_no_longer_improves(place, pretend):
    write_stages(place, CACHED.format(9) + "patience = 2\n", CACHED.format(1))
    pretend(0.2, 0.3, 0.1, 0.25, 0.5)
    assert fit(place, "run") == 0
    assert [row["stage"] for row in log(place, "run")] == [0, 0, 0, 0, 1]


def test_a_stage_is_patient_from_its_own_first_epoch_on(place, pretend):
    write_stages(place, CACHED.format(2), CACHED.format(9) + "patience = 2\n")
    pretend(0.5, 0.1, 0.2, 0.3)
    assert fit(place, "run") == 0
    assert [row["stage"] for row in log(place, "run")] == [0, 0, 1, 1]


@pytest.mark.parametrize("start", ["best", "last"])
def test_self_critical_training_starts_where_it_is_told(place, pretend, monkeypatch, start):
    write_stages(place, CACHED.format(2), SELF_CRITICAL + f'starts_from = "{start}"\n')
    pretend(0.5, 0.4, 0.6, 0.6)
    seen, original = [], StageTrainer.train

    def peek(self):
        seen.append(
            {name: each.clone() for name, each in self.context.network.state_dict().items()}
        )
        if self.stage.kind == "self_critical":
            seen.append(best(place))
        return original(self)

    monkeypatch.setattr(StageTrainer, "train", peek)
    assert fit(place, "run") == 0
    _, start_of_second, best_of_first = seen
    assert same_weights(halved(start_of_second), halved(best_of_first)) == (start == "best")


@pytest.mark.parametrize(("by", "averaged"), [("best", [0, 2]), ("last", [1, 2])])
def test_an_average_is_kept_where_dev_improves(place, pretend, by, averaged, monkeypatch):
    write_stages(place, CACHED.format(3), AVERAGE.format(by))
    pretend(0.4, 0.1, 0.3, 0.5)
    seen, original = {}, TrainingContext.record_epoch

    def peek(self, progress, row, scores):
        seen[len(progress.history)] = {
            name: each.clone() for name, each in self.network.state_dict().items()
        }
        assert len(list((place / "run" / "weights").glob("*"))) <= 4
        return original(self, progress, row, scores)

    monkeypatch.setattr(TrainingContext, "record_epoch", peek)
    assert fit(place, "run") == 0
    row = log(place, "run")[-1]
    assert row["averaged"] == averaged
    assert row["kept"]
    one, other = (seen[index]["decoder.words.weight"] for index in averaged)
    torch.testing.assert_close(
        weights(place, "run")["decoder.words.weight"], (one + other) / 2, rtol=0, atol=1e-6
    )
    assert same_weights(best(place), halved(weights(place, "run")))
    assert not list((place / "run" / "weights").glob("*"))


def test_the_ends_of_stages_are_averaged(place, pretend, monkeypatch):
    average = AVERAGE.replace("= 2", "= 3").format("stages")
    write_stages(place, CACHED.format(1), CACHED.format(2), CACHED.format(2), average)
    pretend(0.5, 0.1, 0.2, 0.1, 0.2, 0.6)
    seen, original = [], TrainingContext.record_epoch

    def peek(self, progress, row, scores):
        seen.append(self.network.state_dict()["decoder.words.weight"].clone())
        return original(self, progress, row, scores)

    monkeypatch.setattr(TrainingContext, "record_epoch", peek)
    assert fit(place, "run") == 0
    assert log(place, "run")[-1]["averaged"] == [0, 2, 4]
    mean = (seen[0] + seen[2] + seen[4]) / 3
    torch.testing.assert_close(seen[5], mean, rtol=0, atol=1e-6)


def test_an_average_is_dropped_where_dev_does_not_improve(place, pretend):
    write_stages(place, CACHED.format(2), AVERAGE.format("last"))
    pretend(0.1, 0.3, 0.3)
    assert fit(place, "run") == 0
    assert not log(place, "run")[-1]["kept"]
    assert same_weights(best(place), halved(weights(place, "run")))


def test_an_average_of_nothing_is_refused(place, capsys):
    write_stages(place, AVERAGE.format("best"))
    assert fit(place, "run") == 1
    assert "average expects weights of two epochs" in capsys.readouterr().err


def test_the_moving_average_is_what_dev_sees_and_best_holds(place):
    write_stages(place, CACHED.format(1) + "ema_decay = 0.9\n")
    assert fit(place, "run") == 0
    kept, shown = state(place), best(place)
    values = kept["progress"]["moving_average"]["values"]
    network = {name: each for name, each in kept["network"].items() if name.startswith("decoder.")}
    assert len(values) == len(network)
    for name, value in zip(network, values, strict=True):
        assert torch.equal(shown[name], value.half().float() if value.ndim > 1 else value)
    assert not same_weights(halved(kept["network"]), shown)


def test_the_moving_average_follows_and_steps_aside():
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 1.0)
    average = MovingAverage(layer, decay=0.05)
    torch.nn.init.constant_(layer.weight, 3.0)
    average.update()
    with average.applied():
        assert layer.weight.item() == pytest.approx(0.05 * 1 + 0.95 * 3)
    assert layer.weight.item() == 3


def test_two_runs_of_one_seed_give_the_same_checkpoint(place):
    write_stages(
        place,
        CACHED.format(2) + "ema_decay = 0.9\n",
        SELF_CRITICAL + TUNED,
        AVERAGE.format("last"),
    )
    hashes = []
    for run in ("one", "two"):
        assert fit(place, run) == 0
        shutil.rmtree(place / "cache")
        hashes.append(checkpoint.read_manifest(place / run / "best").files)
    assert same_weights(weights(place, "one"), weights(place, "two"))
    assert hashes[0] == hashes[1]


def test_a_stage_has_its_own_dropout(place):
    write_stages(place, CACHED.format(1) + "dropout = 0.5\n")
    assert fit(place, "of the stage") == 0
    write_stages(place, CACHED.format(1))
    assert fit(place, "of the network", "network.dropout=0.5") == 0
    assert fit(place, "usual") == 0
    usual, own = weights(place, "usual"), weights(place, "of the stage")
    assert same_weights(own, weights(place, "of the network"))
    assert not same_weights(own, usual)


def test_a_run_starts_from_a_checkpoint(place):
    write_stages(place, CACHED.format(1))
    assert fit(place, "one") == 0
    start = ["--initial", str(place / "one" / "best")]
    assert main([*arguments(place, "two", "stages.0.learning_rate=1e-9"), *start]) == 0
    rows = log(place, "two")
    assert [row["kind"] for row in rows] == ["initial", "cached"]
    assert rows[0]["dev_cider"] == pytest.approx(log(place, "one")[0]["dev_cider"], abs=0.01)
    first, then = best(place, "one"), weights(place, "two")
    assert all(torch.allclose(first[name], then[name], atol=1e-6) for name in first)


def test_a_checkpoint_can_grow_a_global_feature(place):
    write_stages(place, CACHED.format(1))
    assert fit(place, "one") == 0
    start = ["--initial", str(place / "one" / "best")]
    changes = "network.global_feature=true", "stages.0.learning_rate=1e-9"
    assert main([*arguments(place, "two", *changes), *start]) == 0
    first, then = best(place, "one"), weights(place, "two")
    grown = "decoder.global_feature.weight"
    assert then.keys() - first.keys() == {grown, grown.replace("weight", "bias")}
    assert all(torch.allclose(first[name], then[name], atol=1e-6) for name in first)
    usual = 1280**-0.5  # a layer of torch starts within this
    assert 0 < then[grown].abs().max() <= usual / 10 + 1e-6
    start = ["--initial", str(place / "two" / "best")]
    assert main([*arguments(place, "three"), *start]) == 1  # what has grown does not shrink


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ("network.hidden_width=16", "architecture"),
        ('image.fit="crop"', "image"),
    ],
)
def test_another_network_is_no_start(place, capsys, change, differs):
    write_stages(place, CACHED.format(1))
    token_file = place / "data" / "Flickr8k.token.txt"
    token_file.write_text(token_file.read_text().replace("runs on snow", "sleeps on snow"))
    assert fit(place, "one") == 0
    start = ["--initial", str(place / "one" / "best")]
    assert main([*arguments(place, "two", change), *start]) == 1
    assert "cannot be the start" in (said := capsys.readouterr().err)
    assert differs in said
