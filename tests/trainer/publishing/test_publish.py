import dataclasses
import json

import pytest

from app.captioner import checkpoint
from app.captioner.engines import cpu
from app.captioner.errors import CheckpointError
from app.captioner.graphs import ENCODE_INT8, STEP
from app.captioner.manifest import Said
from app.captioner.model import export, torch_checkpoint
from app.captioner.pipeline import Captioner
from support.tiny import captioner_of, data_directory, photo, tiny_unpublished
from trainer.__main__ import main
from trainer.publishing.publish import draw_golden_image
from trainer.publishing.publish import publish as publish_
from trainer.scoring.metrics import Estimate
from trainer.scoring.scores import score


@pytest.fixture
def place(tmp_path):
    data_directory(tmp_path / "data")
    torch_checkpoint.save(tmp_path / "run" / "best", tiny_unpublished())
    return tmp_path


def publish(place, *more):
    store = ["--store", str(place / "store")]
    return main(["publish", str(place / "run"), "--version", "7", *store, *more])


def test_a_run_becomes_a_directory_of_the_model_store(place, capsys):
    notes = place / "notes.md"
    notes.write_text("## Limits\n\nTiny.\n")
    assert publish(place, "--data", str(place / "data"), "--notes", str(notes)) == 0
    directory = place / "store" / "tiny" / "7"
    captioner = Captioner.load(directory)
    captioner.check_golden()
    assert captioner.manifest.version == "7"
    assert captioner.manifest.scores["dev"]["images"] == 2
    card = (directory / "CARD.md").read_text()
    assert "# tiny, version 7" in card
    assert "| cider |" in card
    assert "## Limits\n\nTiny." in card
    assert str(directory) in capsys.readouterr().out


def test_other_kinds_of_photos_are_scored_too(place, capsys):
    data_directory(place / "streets")
    data = ["--data", str(place / "data"), "--data", str(place / "streets")]
    assert publish(place, *data) == 0
    directory = place / "store" / "tiny" / "7"
    scores = Captioner.load(directory).manifest.scores
    assert scores["dev"]["images"] == scores["dev of streets"]["images"] == 2
    assert 0 <= scores["dev of streets"]["faithfulness"]["right"] <= 1
    card = (directory / "CARD.md").read_text()
    assert "On dev of streets: 2 images" in card
    assert "right captions" in card
    assert publish(place, *data, "--data", str(place / "more" / "data")) == 1
    assert "told by their last names" in capsys.readouterr().err


def test_a_version_is_published_once(place, capsys):
    assert publish(place) == 0
    assert publish(place) == 1
    assert "publish under a new version" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--name", "../tiny"], ["--name", "My photos"]])
def test_a_name_that_is_no_directory_is_refused(place, capsys, wrong):
    assert publish(place, *wrong) == 1
    assert "cannot be published" in capsys.readouterr().err
    assert not (place / "store").exists()


def test_a_checkpoint_can_be_given_another_name(place):
    assert publish(place, "--name", "mine") == 0
    assert Captioner.load(place / "store" / "mine" / "7").manifest.name == "mine"


def test_a_search_that_did_better_on_dev_can_be_published(place):
    asked = "--beam-width 2 --length-penalty 1.5 --no-repeat-ngram-size 2"
    assert publish(place, *asked.split()) == 0
    directory = place / "store" / "tiny" / "7"
    search = Captioner.load(directory).manifest.search
    assert (search.beam_width, search.length_penalty, search.max_words) == (2, 1.5, 8)
    assert search.no_repeat_ngram_size == 2
    card = (directory / "CARD.md").read_text()
    assert "width 2, length penalty 1.5, no 2 words in a row twice." in card


def test_a_search_that_is_impossible_is_refused(place, capsys):
    assert publish(place, "--no-repeat-ngram-size", "1") == 1
    assert "no_repeat_ngram_size is 0, or 2 and more" in capsys.readouterr().err


def test_evaluate_scores_a_split_and_writes_the_captions(place, capsys):
    publish(place)
    captions, scores = place / "captions.jsonl", place / "scores.json"
    arguments = ["evaluate", str(place / "store/tiny/7"), "--data", str(place / "data")]
    written = ["--captions", str(captions), "--json", str(scores), "--device", "cpu"]
    assert main([*arguments, *written]) == 0
    printed = capsys.readouterr().out
    for part in ("BLEU-4", "ROUGE-L", "CIDEr", "95 %", "lower-alphanumeric", "copied"):
        assert part in printed
    lines = [json.loads(line) for line in captions.read_text().splitlines()]
    assert [line["image"] for line in lines] == ["dev0.png", "dev1.png"]
    assert json.loads(scores.read_text())["images"] == 2
    assert json.loads(scores.read_text())["precision"] == "float32"
    references = str(place / "data" / "Flickr8k.token.txt")
    assert main(["score", str(captions), "--references", references]) == 0
    value = f"{json.loads(scores.read_text())['cider']['value']:.3f}"
    assert value in capsys.readouterr().out


def test_evaluate_scores_what_a_service_in_bfloat16_says(place, capsys):
    publish(place)
    arguments = ["evaluate", str(place / "store/tiny/7"), "--data", str(place / "data")]
    computes = cpu.computes_bfloat16()
    asked = [*arguments, "--device", "cpu", "--precision", "bfloat16"]
    assert main(asked) == (0 if computes else 1)
    printed = capsys.readouterr()
    assert "on dev, bfloat16" in printed.out if computes else "choose float32" in printed.err


def test_evaluate_reads_any_split_of_the_layout(place, capsys):
    publish(place)
    lists = place / "data"
    (lists / "Flickr_8k.heldImages.txt").write_text("train0.png\ndev1.png\ntrain3.png\n")
    arguments = ["evaluate", str(place / "store/tiny/7"), "--data", str(lists), "--device", "cpu"]
    assert main([*arguments, "--split", "held", "--beam-width", "1"]) == 0
    printed = capsys.readouterr().out
    assert "3 images" in printed
    assert "beam_width=1" in printed
    assert main([*arguments, "--split", "nowhere"]) == 1
    assert "held" in capsys.readouterr().err


def test_held_back_images_are_scored_where_no_training_image_is_at_hand(place, capsys):
    publish(place)
    data = place / "data"
    for path in (data / "Flicker8k_Dataset").glob("train*.png"):
        path.unlink()
    (data / "Flickr_8k.devImages.txt").rename(data / "Flickr_8k.testImages.txt")
    arguments = ["evaluate", str(place / "store/tiny/7"), "--data", str(data), "--device", "cpu"]
    assert main([*arguments, "--split", "test"]) == 0
    assert "copied from training" in capsys.readouterr().out


def test_prepare_describes_what_it_found(place, capsys):
    arguments = ["prepare", "--data", str(place / "data"), "--cache", str(place / "cache")]
    assert main([*arguments, "--size-px", "64"]) == 0
    assert "train: 4 images, 8 captions of 5.5 words" in capsys.readouterr().out
    assert len(list((place / "cache").glob("images-*.npy"))) == 2


def test_the_golden_image_is_always_the_same():
    assert draw_golden_image() == draw_golden_image()


# --- what is checked before anything is written --------------------------------------------------


def test_a_graph_that_says_something_else_than_torch_is_not_published(place, monkeypatch, capsys):
    right = export.templates(tiny_unpublished().network.architecture)
    text = right[STEP].text.replace('type="Tanh"', 'type="Sigmoid"', 1)
    assert text != right[STEP].text
    wrong = {**right, STEP: right[STEP]._replace(text=text)}
    monkeypatch.setattr(export, "templates", lambda _: wrong)
    assert publish(place) == 1
    assert "nats from the network in torch, expected at most 0.01" in capsys.readouterr().err
    assert not (place / "store").exists()


@pytest.fixture(scope="module")
def squares():
    captioner = captioner_of(tiny_unpublished())
    return [captioner.read(photo(seed), max_pixels=10_000) for seed in range(8)]


def scorer(**ciders):
    """Score a captioner by its precision alone."""
    captions = {"a": "a red dog", "b": "a cat"}
    scores = score(captions, {image: (text,) for image, text in captions.items()})

    def score_dev(captioner):
        value = ciders[captioner.precision]
        return dataclasses.replace(scores, cider=Estimate(value, value, value))

    return score_dev


def published(store, squares, **ciders):
    about = {"scores": {}, "notes": "", "calibration": squares}
    return publish_(tiny_unpublished(), store, "1", **about, dev_scorers={"data": scorer(**ciders)})


@pytest.fixture(scope="module")
def with_int8(tmp_path_factory, squares):
    store = tmp_path_factory.mktemp("store")
    return checkpoint.load(published(store, squares, float32=0.6, int8=0.596))


def test_int8_is_published_and_taken_where_nothing_is_faster(with_int8, monkeypatch):
    loaded = with_int8
    assert loaded.manifest.scores["dev"]["cider"]["value"] == 0.6
    assert loaded.manifest.scores["dev_int8"]["cider"]["value"] == 0.596
    monkeypatch.setattr(cpu, "computes_bfloat16", lambda: False)
    captioner = Captioner.of(loaded)
    assert captioner.precision == "int8"
    captioner.check_golden()
    unlike = loaded.golden.said.model_copy(
        update={"int8": Said(caption="a lie", log_prob=loaded.golden.said.int8.log_prob)}
    )
    other = loaded._replace(golden=loaded.golden._replace(said=unlike))
    with pytest.raises(CheckpointError, match="golden caption is 'a lie'"):
        Captioner.of(other).check_golden()
    images = [photo(seed) for seed in range(11)]
    read = [captioner.read(each, max_pixels=10_000) for each in images]
    for image, together in zip(read, captioner.caption(read).captions, strict=True):
        (alone,) = captioner.caption([image]).captions
        assert [each.text for each in alone] == [each.text for each in together]
        assert alone[0].log_prob == pytest.approx(together[0].log_prob, abs=1e-3)


def test_weights_lie_in_a_checkpoint_once_with_int8_too(with_int8):
    assert ENCODE_INT8 in with_int8.graphs
    halves = sum(2 * each.numel() for each in tiny_unpublished().network.state_dict().values())
    assert len(with_int8.weights) < 2 * halves  # and int8 has its own, of half the bytes


def test_int8_that_costs_too_much_is_left_out(tmp_path, squares, capsys):
    directory = published(tmp_path, squares, float32=0.6, int8=0.594)
    assert "int8 is left out" in capsys.readouterr().out
    loaded = checkpoint.load(directory)
    assert ENCODE_INT8 not in loaded.graphs
    without = torch_checkpoint.contents(tiny_unpublished().network)
    assert len(loaded.weights) == len(without["weights.safetensors"])
    assert "dev_int8" not in loaded.manifest.scores
    assert loaded.golden.said.int8 is None
    with pytest.raises(CheckpointError, match="it has no graphs/encode-int8"):
        Captioner.of(loaded, precision="int8")
