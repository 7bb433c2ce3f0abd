"""The verb ``calibrate``: what it learns is told by the service, and it refuses what it cannot."""

import json

import numpy as np
import pytest
import torch

from app.captioner import checkpoint, confidence
from app.captioner.confidence import ConfidenceModel
from app.captioner.engines.engine import EngineResult
from app.captioner.pipeline import Captioner
from app.captioner.search import BeamArrays
from support.photos import photo
from support.tiny import as_loaded, data_directory, tiny_unpublished
from trainer.__main__ import main
from trainer.calibrating import attributes, fitting
from trainer.calibrating.fitting import NO_PHOTOS, Domain, fit_confidence, scores_of
from trainer.calibrating.no_photos import no_photos
from trainer.errors import TrainerError
from trainer.publishing.publish import publish

DOG, GIRL = 5, 9  # ids of words of the tiny vocabulary


class Seer:
    """Says "dog" of every image; surely where it is red, which it is right about."""

    max_concurrent_batches = 1
    batches_cost_alike = False

    def run(self, images, still_waiting):  # noqa: ARG002
        red_B = np.array([image[..., 0].mean() > 128 for image in images])
        sure_B = np.where(red_B, -0.1, -2.0).astype(np.float32)
        words_BKT = np.full((len(images), 1, 1), DOG)
        beams = BeamArrays(
            words_BKT,
            np.ones((len(images), 1), np.int64),
            sure_B[:, None] - 0.1,
            sure_B[:, None] / 2,
            sure_B[:, None, None],
            None,
            np.stack([image.reshape(-1, 3).mean(0) / 255 for image in images]).astype(np.float32),
        )
        return EngineResult(list(range(len(images))), beams, ())

    def warm_up(self, images):
        pass


def kind(name, count, *, seed):
    chance = np.random.default_rng(seed)
    squares = chance.integers(0, 256, (count, 1, 1, 3)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    said = ["A dog ." if square[0, 0, 0] > 128 else "A girl ." for square in squares]
    return Domain(name, list(squares), [(each,) for each in said])


def test_a_confidence_model_tells_right_from_wrong():
    loaded = as_loaded(tiny_unpublished())
    fitted = fit_confidence(
        loaded, Seer(), kind("training", 80, seed=0), [kind("home", 200, seed=1)]
    )
    home, drawn = fitted.by_domain["home"], fitted.by_domain[NO_PHOTOS]
    assert home.auroc > 0.95
    assert home.calibration_error < 0.2
    assert home.wrong_told < 0.1 < home.right
    assert (drawn.right, drawn.auroc) == (0, None)
    model = ConfidenceModel.read(fitted.content, len(loaded.vocabulary))
    reds = np.array([[250, 30, 30], [5, 30, 30]], np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    found = model.confidences(Seer().run(list(reds), None).beams)
    assert found[0, 0] > found[1, 0] + 0.3
    assert scores_of(fitted)["by_domain"]["home"]["captions"] == 200


def test_no_photos_are_of_many_kinds_and_the_same_for_a_seed():
    drawn = no_photos(26, size_px=32)
    assert {each.shape for each in drawn} == {(32, 32, 3)}
    assert len({each.tobytes() for each in drawn}) == 26
    assert all(np.array_equal(*pair) for pair in zip(drawn, no_photos(26, size_px=32), strict=True))


@pytest.fixture
def few(monkeypatch):
    """Few drawings: what a tiny network says is not worth many."""
    monkeypatch.setattr(fitting, "DRAWN", 20)
    monkeypatch.setattr(fitting, "DRAWN_TO_LEARN", 20)
    monkeypatch.setattr(fitting, "FEWEST", 1)
    monkeypatch.setattr(attributes, "LEAST_IMAGES", 2)


def test_a_calibrated_checkpoint_says_how_sure_it_is(tmp_path, few, capsys):
    data = data_directory(tmp_path / "data", train=20, dev=12)
    unpublished = tiny_unpublished()
    with torch.no_grad():
        unpublished.network.decoder.words.bias[DOG] += 4  # so that it names something
    source = publish(unpublished, tmp_path / "store", "1", scores={}, notes="", degenerate=True)
    # let some captions be right: what the network says becomes a reference
    captioner = Captioner.load(source)
    tokens = (data / "Flickr8k.token.txt").read_text().splitlines()
    for n in range(6):
        image = captioner.read(photo(n), max_pixels=10_000)
        said = captioner.caption([image]).captions[0][0].text
        tokens.append(f"dev{n}.png#2\t{said} dog girl ball water grass")
    (data / "Flickr8k.token.txt").write_text("\n".join(tokens) + "\n")
    arguments = ["calibrate", str(source), "--version", "2", "--store", str(tmp_path / "store")]
    assert main([*arguments, "--data", str(data)]) == 0
    told = capsys.readouterr().out
    assert "AUROC" in told
    calibrated = tmp_path / "store" / "tiny" / "2"
    manifest = json.loads((calibrated / "manifest.json").read_text())
    assert confidence.FILE in manifest["files"]
    assert manifest["scores"]["confidence"]["by_domain"]["data"]["captions"] == 12
    again = Captioner.load(calibrated)
    (candidates,) = again.caption([again.read(photo(0), max_pixels=10_000)]).captions
    assert all(0 < each.confidence < 1 for each in candidates)
    again.check_golden()
    assert main([*arguments, "--data", str(data)]) == 1  # a published version never changes
    changed = bytearray((calibrated / confidence.FILE).read_bytes())
    changed[-1] ^= 1
    (calibrated / confidence.FILE).write_bytes(changed)
    with pytest.raises(checkpoint.CheckpointError, match=r"confidence\.safetensors has sha256"):
        checkpoint.load(calibrated)


def test_where_all_captions_are_wrong_it_says_so(tmp_path, few, capsys):
    data = data_directory(tmp_path / "data", train=4, dev=2)
    path = data / "Flickr8k.token.txt"
    lines = [line.split("\t")[0] + "\tA fox ." for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")
    source = publish(
        tiny_unpublished(), tmp_path / "store", "1", scores={}, notes="", degenerate=True
    )
    arguments = ["calibrate", str(source), "--version", "2", "--store", str(tmp_path / "store")]
    assert main([*arguments, "--data", str(data)]) == 1
    assert "captions get no confidence: " in capsys.readouterr().out
    assert not (tmp_path / "store" / "tiny" / "2").exists()


def test_a_handful_of_captions_is_not_learned_by_heart():
    few = kind("home", 60, seed=1)
    with pytest.raises(TrainerError, match="it takes 40 of each"):
        fit_confidence(as_loaded(tiny_unpublished()), Seer(), kind("training", 80, seed=0), [few])
