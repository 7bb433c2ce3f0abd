"""The trainer through its own door: the command line on a directory of tiny images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision import models

from app.captioner import checkpoint
from app.captioner.image.decode import decode
from app.captioner.image.fit import fit as fit_image
from app.captioner.model import torch_checkpoint
from app.captioner.pipeline import Captioner
from support.runs import arguments, fit, log, weights
from support.tiny import data_directory, photo
from trainer.__main__ import main
from trainer.training.stages import learning_rate_scale


def telling_encoder(place: Path) -> Path:
    """Random weights whose batch-norm statistics fit the photos, so that features differ."""
    torch.manual_seed(0)
    net = models.mobilenet_v2(weights=None).train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    images = [decode(photo(seed), at_least_px=64, max_pixels=10_000) for seed in range(4)]
    squares_BHWC = np.stack([fit_image(image, size_px=64, how="squeeze") for image in images])
    with torch.no_grad():
        net.features(torch.from_numpy(squares_BHWC).permute(0, 3, 1, 2) / 255)
    save_file(net.state_dict(), place / "telling.safetensors")
    return place / "telling.safetensors"


@pytest.mark.long
@pytest.mark.timeout(300)
def test_it_overfits_four_images(place):
    """The proof that images, words, network, loss and search belong together."""
    shutil.rmtree(place / "data")
    data_directory(place / "data", train=4, dev=4)  # dev: the same photos under other names
    token_file = place / "data" / "Flickr8k.token.txt"
    first = [line for line in token_file.read_text().splitlines() if "#0" in line]
    token_file.write_text("\n".join(first) + "\n")
    changes = ["captions_per_image=1", "network.dropout=0.0", "stages.1.epochs=1"]
    changes += ["stages.0.epochs=70", "stages.0.learning_rate=0.02"]
    changes += ["stages.0.label_smoothing=0.0", "stages.0.batch_images=4"]
    encoder = ["--encoder-weights", str(telling_encoder(place))]
    assert main([*arguments(place, "run", *changes), *encoder]) == 0
    captioner = Captioner.load(place / "run" / "best")
    for index in range(4):
        found = captioner.caption([captioner.read(photo(index), max_pixels=10_000)])
        assert found.captions[0][0].text == first[index].split("\t")[1].lower().removesuffix(" .")


def test_a_finished_run_is_left_alone(place):
    assert fit(place, "run", "stages.0.epochs=1", "stages.1.epochs=1") == 0
    before = (place / "run" / "state.pt").read_bytes()
    assert fit(place, "run", "stages.0.epochs=1", "stages.1.epochs=1") == 0
    assert (place / "run" / "state.pt").read_bytes() == before


def test_another_recipe_does_not_go_on_in_the_same_directory(place, capsys):
    assert fit(place, "run", "stages.0.epochs=1", "stages.1.epochs=1") == 0
    assert fit(place, "run", "seed=2") == 1
    assert "holds a run of another recipe" in capsys.readouterr().err


def test_fine_tuning_moves_the_last_blocks_and_no_others(place):
    fit(place, "run", "stages.0.epochs=1", "stages.1.epochs=1")
    fit(place, "other", "stages.0.epochs=1", "stages.1.epochs=2")
    one, other = weights(place, "run"), weights(place, "other")
    moved = {
        int(name.split(".")[2])
        for name in one
        if name.startswith("encoder.blocks") and not torch.equal(one[name], other[name])
    }
    assert moved == {16, 17, 18}
    statistics = [name for name in one if "running_" in name]
    assert statistics
    assert all(torch.equal(one[name], other[name]) for name in statistics)


def test_the_best_epoch_is_kept_with_its_origin(place):
    fit(place, "run")
    manifest = checkpoint.read_manifest(place / "run" / "best")
    rows = log(place, "run")
    assert len(rows) == 4
    assert {row["kind"] for row in rows} == {"cached", "fine_tune"}
    best = max(rows, key=lambda row: row["dev_cider"])
    assert manifest.history[-1]["dev_cider"] == best["dev_cider"]
    assert manifest.data["train"]["images"] == 4
    assert manifest.versions["torch"] == torch.__version__.split("+")[0]
    assert manifest.recipe["seed"] == 1
    assert list((place / "run" / "tensorboard").iterdir())


def test_the_cache_is_described_and_used_again(place, capsys):
    fit(place, "one", "stages.0.epochs=1", "stages.1.epochs=1")
    arrays = sorted((place / "cache").glob("*.npy"))
    written = [path.stat().st_mtime_ns for path in arrays]
    fit(place, "two", "stages.0.epochs=1", "stages.1.epochs=1")
    assert [path.stat().st_mtime_ns for path in arrays] == written
    for path in arrays:
        described = json.loads(path.with_suffix(".json").read_text())
        assert tuple(described["shape"]) == np.load(path, mmap_mode="r").shape


def test_an_encoder_comes_from_a_checkpoint(place):
    assert fit(place, "first", "stages.0.epochs=1") == 0
    best = str(place / "first" / "best")
    other = arguments(place, "other", 'network.decoder="merge"', "stages.0.epochs=1")
    assert main([*other, "--encoder-weights", best]) == 0
    ours, theirs = (
        load_file(place / run / "best" / "weights.safetensors") for run in ("other", "first")
    )
    frozen = [name for name in ours if name.startswith("encoder.blocks.0.")]
    assert frozen
    assert all(torch.equal(ours[name], theirs[name]) for name in frozen)


def test_a_checkpoint_of_another_encoder_is_refused(place, capsys):
    assert fit(place, "first", "stages.0.epochs=1") == 0
    best = str(place / "first" / "best")
    other = arguments(place, "other", 'network.encoder="mobilenet_v3_large"')
    assert main([*other, "--encoder-weights", best]) == 1
    assert "this recipe asks for mobilenet_v3_large" in capsys.readouterr().err


def test_encoder_weights_come_from_a_file(place):
    file = place / "mobilenet.safetensors"
    save_file(models.mobilenet_v2(weights=None).state_dict(), file)
    arguments = [
        "fit",
        str(place / "recipe.toml"),
        "--data",
        str(place / "data"),
        "--device",
        "cpu",
    ]
    arguments += ["--run", str(place / "run"), "--cache", str(place / "cache")]
    arguments += ["--set", "stages.0.epochs=1", "--set", "stages.1.epochs=1"]
    assert main([*arguments, "--encoder-weights", str(file)]) == 0
    first = weights(place, "run")["encoder.blocks.0.0.weight"]
    assert torch.equal(first, load_file(file)["features.0.0.weight"])


def test_weights_of_another_network_are_refused(place, capsys):
    file = place / "wrong.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    assert main([*arguments(place, "run"), "--encoder-weights", str(file)]) == 1
    assert "does not hold a state dict of torchvision's mobilenet_v2" in capsys.readouterr().err


def test_a_broken_image_is_named(place, capsys):
    (place / "data" / "Flicker8k_Dataset" / "train1.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    assert fit(place, "run") == 1
    assert "train1.png cannot be used" in capsys.readouterr().err


def test_the_rate_warms_up_and_falls_to_zero():
    shares = [learning_rate_scale(step, 100, 10) for step in range(100)]
    assert shares[0] == pytest.approx(1 / 11, rel=0.01)
    assert max(shares) == pytest.approx(1, abs=0.03)
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[-1] < 0.001


@pytest.mark.parametrize("decoder", ["merge", "inject"])
def test_the_articles_decoders_train_on_the_penultimate_vector(place, decoder):
    changes = [f'network.decoder="{decoder}"', 'network.features="vector"']
    assert fit(place, "run", *changes, "stages.1.epochs=1") == 0
    assert torch_checkpoint.load(place / "run" / "best").network.encoder.width == 1280
