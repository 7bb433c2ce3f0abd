"""The verbs ``show`` and ``export``: runs side by side; a checkpoint in forms that others load."""

import json
import re

import numpy as np
import pytest
import torch

from app.captioner import checkpoint
from app.captioner.model import torch_checkpoint
from app.captioner.pipeline import Captioner
from support.photos import photo
from support.runs import fit
from support.tiny import tiny_unpublished
from trainer.__main__ import main
from trainer.errors import TrainerError
from trainer.publishing.publish import publish


def test_runs_are_shown_side_by_side(place, capsys):
    for run, changes in (("one", ("seed=1",)), ("two", ("seed=2", "stages.0.epochs=1"))):
        assert fit(place, run, *changes, "stages.1.epochs=1") == 0
    capsys.readouterr()
    assert main(["show", str(place / "one"), str(place / "two")]) == 0
    told = capsys.readouterr().out
    header, one, two, _, *recipe = told.splitlines()
    assert header.split()[:2] == ["run", "epochs"]
    assert (one.split()[:2], two.split()[:2]) == (
        [str(place / "one"), "3"],
        [str(place / "two"), "2"],
    )
    assert [line.split()[0] for line in recipe[1:]] == ["seed", "stages.0.epochs"]


def test_what_is_no_run_is_told(place, capsys):
    assert main(["show", str(place)]) == 1
    assert "is no run that has finished an epoch" in capsys.readouterr().err


@pytest.fixture(params=["merge", "inject", "attention"])
def stored(request, tmp_path):
    changes = {}
    if request.param == "attention":
        changes = {"global_feature": True, "classes": True, "tied_words": True}
    unpublished = tiny_unpublished(request.param, **changes)
    return publish(unpublished, tmp_path / "store", "1", scores={}, notes="N", degenerate=True)


def test_onnx_graphs_say_what_the_network_says(stored, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert main(["export", str(stored), "--onnx", str(tmp_path / "onnx")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    about = json.loads((tmp_path / "onnx" / "onnx.json").read_text())
    encode, step = (
        onnxruntime.InferenceSession(tmp_path / "onnx" / f"{name}.onnx")
        for name in ("encode", "step")
    )
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    found = dict(zip(about["encode"]["outputs"], encode.run(None, {"images": images}), strict=True))
    words = np.array([[1], [5], [6]])
    inputs = {name: words if name == "words" else found[name] for name in about["step"]["inputs"]}
    scores, hidden, *_ = step.run(None, inputs)

    network = torch_checkpoint.load(stored).network
    with torch.inference_mode():
        features_BRD = network.encoder(torch.from_numpy(images).permute(0, 3, 1, 2))
        state = network.decoder.start(features_BRD, 1)
        expected, after, _ = network.decoder.step(torch.from_numpy(words), state)
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-3)
    np.testing.assert_allclose(hidden, after.rows[0].numpy(), atol=1e-4)
    assert about["words"][4:] == list(checkpoint.load(stored).vocabulary.words)


def test_a_network_that_reads_clips_has_no_onnx_graphs_and_goes_to_a_hub(tmp_path, capsys):
    unpublished = tiny_unpublished(frames="mean", frames_per_clip=3)
    stored = publish(unpublished, tmp_path, "1", scores={}, notes="N", degenerate=True)
    assert main(["export", str(stored), "--onnx", str(tmp_path / "onnx")]) == 1
    told = capsys.readouterr().err
    assert "this one reads clips: use --hub" in told
    assert not (tmp_path / "onnx").exists()
    assert main(["export", str(stored), "--hub", str(tmp_path / "hub")]) == 0


def test_a_folder_for_a_hub_is_a_checkpoint_with_a_card(stored, tmp_path):
    folder = tmp_path / "hub"
    assert main(["export", str(stored), "--hub", str(folder)]) == 0
    card = (folder / "README.md").read_text()
    head = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1]
    fields = dict(line.split(": ", 1) for line in head.splitlines())
    assert json.loads(fields["pipeline_tag"]) == "image-to-text"
    assert "# tiny, version 1" in card
    assert json.loads((folder / "config.json").read_text())["encoder"] == "mobilenet_v2"
    captioner = Captioner.load(folder)
    captioner.check_golden()
    assert captioner.caption([captioner.read(photo(), max_pixels=10_000)]).captions[0]
    assert main(["export", str(stored), "--hub", str(folder)]) == 1


def test_export_wants_to_know_where_to(stored, capsys):
    assert main(["export", str(stored)]) == 1
    assert "expects --onnx DIR or --hub DIR" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["one caption for all", "a word over and over"])
def test_a_degenerate_network_is_published_only_if_told(case, tmp_path):
    unpublished = tiny_unpublished()
    manifest = unpublished.manifest
    if case == "one caption for all":
        history = [{"dev_cider": 0.0, "dev_distinct_captions": 1}]
        manifest = manifest.model_copy(update={"history": history, "data": {"dev": {"images": 9}}})
    else:
        with torch.no_grad():
            unpublished.network.decoder.words.bias[5] += 40
    unpublished = unpublished._replace(manifest=manifest)
    with pytest.raises(TrainerError, match=r"one caption for all 9|repeats itself \('dog dog dog"):
        publish(unpublished, tmp_path, "1", scores={}, notes="")
    assert not (tmp_path / "tiny").exists()
    publish(unpublished, tmp_path, "1", scores={}, notes="", degenerate=True)
