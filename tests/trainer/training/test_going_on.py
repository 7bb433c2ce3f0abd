"""Going on: with other words, other data, other recipes, after a failed start, after a mishap."""

import json
import re

import pytest
import torch

from app.captioner.model import torch_checkpoint
from support.runs import arguments, fit, log
from support.tiny import data_directory
from trainer.__main__ import main
from trainer.training.stages import learning_rate_scale

SHORT = ("stages.0.epochs=1", "stages.1.epochs=1")
WITHOUT_NETWORK = """
name = "mine"
captions_per_image = 2
[vocabulary]
min_count = 1
[[stages]]
kind = "cached"
epochs = 1
batch_images = 2
"""


def other_words(place):
    """The same photos, described with a word that nobody has learnt."""
    data_directory(place / "mine")
    tokens = place / "mine" / "Flickr8k.token.txt"
    tokens.write_text(tokens.read_text().replace("dog", "zorse"))


def test_a_checkpoint_keeps_its_words_and_learns_new_ones(place):
    assert fit(place, "first", *SHORT) == 0
    other_words(place)
    (place / "mine.toml").write_text(WITHOUT_NETWORK)
    start = place / "first" / "best"
    again = ["fit", str(place / "mine.toml"), "--data", str(place / "mine"), "--device", "cpu"]
    again += ["--run", str(place / "second"), "--cache", str(place / "cache")]
    assert main([*again, "--initial", str(start)]) == 0
    before, after = (torch_checkpoint.load(each) for each in (start, place / "second" / "best"))
    known = len(before.vocabulary)
    assert after.vocabulary.words[: known - 4] == before.vocabulary.words
    assert after.vocabulary.words[known - 4 :] == ("zorse",)
    assert "dog" in after.vocabulary.words
    assert after.manifest.image == before.manifest.image
    assert after.manifest.search == before.manifest.search
    assert log(place, "second")[0]["kind"] == "initial"


def test_new_words_begin_as_unlikely_as_the_rarest(place):
    assert fit(place, "first", *SHORT) == 0
    other_words(place)
    (place / "mine.toml").write_text(
        WITHOUT_NETWORK.replace("epochs = 1", "epochs = 1\nlearning_rate = 1e-9")
    )
    again = ["fit", str(place / "mine.toml"), "--data", str(place / "mine"), "--device", "cpu"]
    again += ["--run", str(place / "second"), "--cache", str(place / "cache")]
    assert main([*again, "--initial", str(place / "first" / "best")]) == 0
    before, after = (
        torch_checkpoint.load(place / run / "best").network.decoder for run in ("first", "second")
    )
    known = before.words.bias.shape[0]
    torch.testing.assert_close(after.words.bias[:known], before.words.bias, atol=1e-3, rtol=0)
    assert after.words.bias[known:].max() <= before.words.bias.min() + 1e-3
    assert after.embedding.weight.shape[0] == known + 1


def test_a_recipe_without_a_network_needs_a_checkpoint(place, capsys):
    (place / "recipe.toml").write_text(WITHOUT_NETWORK)
    assert fit(place, "run") == 1
    assert "give the checkpoint to start from with --initial" in capsys.readouterr().err


def test_a_network_without_an_image_is_refused(place, capsys):
    text = WITHOUT_NETWORK + '[network]\nencoder = "mobilenet_v2"\n'
    (place / "recipe.toml").write_text(text)
    assert fit(place, "run") == 1
    assert "image: Field required" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["words", "images"])
def test_a_run_refuses_other_data(place, capsys, what):
    assert fit(place, "run", *SHORT) == 0
    tokens = place / "data" / "Flickr8k.token.txt"
    if what == "words":
        tokens.write_text(tokens.read_text() + "train0.png#2\tA zorse .\n")
    else:
        image = place / "data" / "Flicker8k_Dataset" / "dev0.png"
        image.write_bytes((place / "data" / "Flicker8k_Dataset" / "dev1.png").read_bytes())
    assert fit(place, "run", *SHORT) == 1
    said = capsys.readouterr().err
    assert "the data has changed since" in said
    assert ("vocabulary" in said) == (what == "words")
    assert "--initial" in said


def test_another_recipe_is_told_by_what_differs(place, capsys):
    assert fit(place, "run", *SHORT) == 0
    assert fit(place, "run", "stages.0.epochs=4", SHORT[1]) == 1
    said = capsys.readouterr().err
    assert "stages.0.epochs is 4, was 1" in said
    assert "--initial" in said


def test_a_start_that_failed_leaves_a_directory_for_the_next(place):
    assert main([*arguments(place, "run"), "--encoder-weights", str(place / "nowhere")]) == 1
    assert fit(place, "run", *SHORT) == 0


def test_a_damaged_state_is_told_and_nothing_is_lost(place, capsys):
    assert fit(place, "run", *SHORT) == 0
    state = place / "run" / "state.pt"
    whole = state.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"nothing of ours"):
        state.write_bytes(damaged)
        assert fit(place, "run", *SHORT) == 1
        assert re.search(r"state\.pt is damaged .*remove it", capsys.readouterr().err)
        assert state.read_bytes() == damaged
    torch_checkpoint.load(place / "run" / "best")


def test_a_loss_that_is_no_number_is_noticed_in_its_epoch(place, capsys):
    changes = ["stages.0.epochs=1", "stages.1.encoder_learning_rate=1e30"]
    changes += ["stages.1.learning_rate=1e30", "stages.1.warmup_steps=0"]
    assert fit(place, "run", *changes) == 1
    assert "lower stages.1.learning_rate (now 1e+30)" in capsys.readouterr().err
    assert [row["stage"] for row in log(place, "run")] == [0]
    torch_checkpoint.load(place / "run" / "best")


def test_weights_that_are_no_numbers_after_the_last_step_are_noticed(place, capsys):
    """The loss of the step that ruins them is still one."""
    changes = ["stages.0.epochs=1", "stages.0.batch_images=4", "stages.0.learning_rate=1e30"]
    assert fit(place, "run", *changes, "stages.0.warmup_steps=0") == 1
    assert "learning_rate" in capsys.readouterr().err


def test_of_equal_scores_the_lower_loss_wins(place):
    """Nothing of dev is ever said: every CIDEr is 0."""
    tokens = place / "data" / "Flickr8k.token.txt"
    lines = [
        line if line.startswith("train") else line.split("\t")[0] + "\tzyx wvu tsr"
        for line in tokens.read_text().splitlines()
    ]
    tokens.write_text("\n".join(lines) + "\n")
    assert fit(place, "run", "stages.0.epochs=6", "stages.1.epochs=1") == 0
    rows = log(place, "run")
    assert {row["dev_cider"] for row in rows} == {0}
    losses = [row["dev_loss"] for row in rows]
    history = json.loads((place / "run" / "best" / "manifest.json").read_text())["history"]
    assert losses[len(history) - 1] == min(losses)


def test_a_line_an_epoch_tells_a_person_how_it_goes(place, capsys):
    assert fit(place, "run", "stages.0.epochs=2", "stages.1.epochs=1") == 0
    told = capsys.readouterr().out
    assert re.search(
        r"stage 1 of 2 \(cached\), epoch 1 of 2: loss \d\.\d{3}, dev loss \d\.\d{3}, dev CIDEr "
        r"\d\.\d{3} \(the best so far\), about 1 min left in this stage",
        told,
    )
    assert re.search(r"^    dev0\.png: \w", told, re.MULTILINE)


def test_one_caption_for_all_images_is_warned_of(place, capsys):
    still = ["stages.0.learning_rate=1e-9", "stages.0.epochs=1", "stages.1.epochs=1"]
    assert fit(place, "run", *still, "stages.1.learning_rate=1e-9") == 0
    assert "warning: only 1 different captions of 2 dev images" in capsys.readouterr().out


@pytest.mark.parametrize(("steps", "most"), [(60, 6), (5, 0), (10_000, 100)])
def test_the_warm_up_takes_a_tenth_of_the_steps_at_most(steps, most):
    scales = [learning_rate_scale(n, steps, 100, schedule="constant") for n in range(steps)]
    assert sum(scale < 1 for scale in scales) == most
