"""Clips on the way from a directory to a served checkpoint, the way a person types it."""

import json
import sys

import numpy as np
import pytest

from app.captioner import checkpoint
from app.captioner.pipeline import Captioner
from app.settings import PROJECT_ROOT, Settings
from support.runs import fit, log
from support.tiny import clip_directory, photo
from trainer.__main__ import main

sys.path.append(str(PROJECT_ROOT / "benchmarks"))
import moving_shapes

SHIPPED = PROJECT_ROOT / Settings().checkpoint


@pytest.fixture
def clips(place):
    """The tiny recipe, with clips in place of the photos of its data."""
    (place / "data").rename(place / "photos")
    clip_directory(place / "data")
    return place


@pytest.mark.parametrize("frames", ["mean", "lstm"])
def test_clips_are_trained_on_scored_published_and_captioned(clips, frames, capsys):
    reading = (f"network.frames={frames}", "network.frames_per_clip=3")
    assert fit(clips, "run", *reading) == 0
    assert [row["kind"] for row in log(clips, "run")] == ["cached"] * 2 + ["fine_tune"] * 2
    data, run, store = str(clips / "data"), str(clips / "run"), str(clips / "store")
    report = str(clips / "report")
    assert main(["evaluate", run, "--data", data, "--report", report, "--device", "cpu"]) == 0
    assert "CIDEr" in capsys.readouterr().out
    assert (clips / "report" / "index.html").is_file()
    assert main(["publish", run, "--version", "1", "--store", store, "--degenerate"]) == 0
    captioner = Captioner.load(clips / "store" / "tiny" / "1")
    captioner.check_golden()
    squares = [captioner.read(photo(seed), max_pixels=10_000) for seed in range(5)]
    assert captioner.caption_frames(squares)[0].text


@pytest.mark.long
@pytest.mark.parametrize("frames", ["mean", "lstm"])
def test_clips_are_published_with_int8_and_scores(clips, frames):
    assert fit(clips, "run", f"network.frames={frames}", "network.frames_per_clip=3") == 0
    data, store = str(clips / "data"), str(clips / "store")
    publish = ["publish", str(clips / "run"), "--version", "1", "--store", store, "--data", data]
    assert main([*publish, "--degenerate"]) == 0
    directory = clips / "store" / "tiny" / "1"
    assert "cider" in json.loads((directory / "manifest.json").read_text())["scores"]["dev"]
    Captioner.load(directory, precision="int8").check_golden()


def test_a_checkpoint_without_the_graph_that_reads_frames_is_refused(clips):
    assert fit(clips, "run", "network.frames=lstm", "network.frames_per_clip=3") == 0
    best = clips / "run" / "best"
    manifest = best / "manifest.json"
    manifest.write_text(manifest.read_text().replace("graphs/read.xml", "graphs/other.xml"))
    (best / "graphs" / "read.xml").rename(best / "graphs" / "other.xml")
    with pytest.raises(checkpoint.CheckpointError, match=r"does not list graphs/read\.xml"):
        checkpoint.load(best)


def test_a_checkpoint_of_photos_captions_clips_too(place, capsys):
    assert fit(place, "run") == 0
    data = str(clip_directory(place / "clips"))
    assert main(["evaluate", str(place / "run"), "--data", data, "--device", "cpu"]) == 0
    assert "2 images" in capsys.readouterr().out


def test_what_does_not_fit_together_is_one_line(clips, capsys):
    assert fit(clips, "run") == 1
    assert "train holds clips, directories of frames" in capsys.readouterr().err
    assert fit(clips, "run2", "network.frames=last") == 1
    assert "network.frames" in capsys.readouterr().err


def test_clips_are_cached_and_the_doctor_looks_at_them(clips, capsys):
    data = clips / "data"
    cache = str(clips / "cache")
    fill = ["prepare", "--data", str(data), "--cache", cache, "--size-px", "64"]
    assert main([*fill, "--frames-per-clip", "3"]) == 0
    assert "train: 4 images" in capsys.readouterr().out
    assert main(["doctor", str(data)]) == 0
    folder = data / "Flicker8k_Dataset"
    (folder / "train0" / "003.png").write_bytes(photo(99))
    (folder / "train1" / "001.png").write_bytes(b"no image")
    for frame in (folder / "train2").iterdir():
        frame.unlink()
    capsys.readouterr()
    assert main(["doctor", str(data)]) == 1
    said = capsys.readouterr().out
    assert "clips have 3 to 4 frames" in said
    assert "train1 (" in said
    assert "train2" in said
    assert "holds no frame" in said


def test_the_doctor_tells_images_among_clips(clips, capsys):
    folder = clips / "data" / "Flicker8k_Dataset"
    for frame in (folder / "train3").iterdir():
        frame.unlink()
    (folder / "train3").rmdir()
    (folder / "train3").write_bytes(photo(3))
    assert main(["doctor", str(clips / "data")]) == 1
    assert "train lists 3 clips and 1 image: train3" in capsys.readouterr().out


def test_opposite_moves_are_each_other_backwards():
    for one, other in zip(moving_shapes.MOVES[::2], moving_shapes.MOVES[1::2], strict=True):
        paths = [moving_shapes.path_of(move, 5, np.random.default_rng(3)) for move in (one, other)]
        np.testing.assert_allclose(paths[0], paths[1][::-1])


def test_shares_of_right_captions():
    truth = dict.fromkeys("abcd", "the red square moves left")
    said = {
        "a": "the red square moves left",
        "b": "the red square moves right",
        "c": "the blue square moves left",
        "d": "the red square grows",
    }
    assert moving_shapes.shares(said, truth) == {
        "exact": 0.25,
        "thing": 0.75,
        "axis": 0.75,
        "move": 0.5,
    }


RECIPE = PROJECT_ROOT / "trainer" / "recipes" / "moving-shapes.toml"


def test_an_lstm_tells_left_from_right_and_a_mean_does_not(tmp_path):
    """The proof of docs/training.md in the small: one shape, two directions, four frames."""
    moves = [moving_shapes.Clip("red", "square", f"moves {side}") for side in ("left", "right")]
    splits = {"train": 72, "dev": 12, "test": 32}
    moving_shapes.make(tmp_path / "data", splits=splits, clips=moves, frames=4)
    exact = {}
    for frames in ("lstm", "mean"):
        changes = [f"network.frames={frames}", "network.frames_per_clip=4"]
        changes += ["stages.0.epochs=30", "stages.0.batch_images=8", "network.hidden_width=64"]
        changes += ["network.encoder=efficientnet_lite1"]
        settings = [part for change in changes for part in ("--set", change)]
        where = ["--data", str(tmp_path / "data"), "--run", str(tmp_path / frames)]
        given = ["--cache", str(tmp_path / "cache"), "--encoder-weights", str(SHIPPED)]
        assert main(["fit", str(RECIPE), *where, *given, "--device", "cpu", *settings]) == 0
        exact[frames] = moving_shapes.scored(tmp_path / frames / "best", tmp_path / "data")
    assert exact["lstm"]["test"]["exact"] >= 0.9
    assert exact["lstm"]["shuffled"]["exact"] <= 0.8
    assert exact["mean"]["test"]["exact"] <= 0.8
    assert exact["mean"]["test"]["axis"] == 1
