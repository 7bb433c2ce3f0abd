"""`evaluate --report`: one page that needs nothing else and shows what was said."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from app.captioner.captions import Caption, Word
from app.captioner.model import torch_checkpoint
from support.tiny import data_directory, tiny_unpublished
from trainer.__main__ import main
from trainer.evaluation.calibration import calibrate
from trainer.evaluation.caption_cards import heat_map
from trainer.evaluation.charts import learning_curves

HISTORY = [
    {"stage": 0, "kind": "cached", "epoch": 0, "train_loss": 3.0, "dev_cider": 0.1, "seconds": 9.0},
    {"stage": 0, "kind": "cached", "epoch": 1, "train_loss": 2.0, "dev_cider": 0.3, "seconds": 9.0},
    {"stage": 1, "kind": "fine_tune", "epoch": 0, "train_loss": 1.0, "dev_cider": 0.4},
]


class Page(HTMLParser):
    """What a browser would fetch, and which elements are open at the end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in {"src", "href"}]


def report(place, decoder: str = "attention", dev: int = 13, history=HISTORY, **changes) -> str:
    data_directory(place / "data", train=2, dev=dev)
    unpublished = tiny_unpublished(decoder, **changes)
    manifest = unpublished.manifest.model_copy(update={"history": history})
    torch_checkpoint.save(place / "best", unpublished._replace(manifest=manifest))
    written = ["--report", str(place / "report"), "--captions", str(place / "captions.jsonl")]
    arguments = ["evaluate", str(place / "best"), "--data", str(place / "data"), *written]
    assert main([*arguments, "--json", str(place / "scores.json"), "--device", "cpu"]) == 0
    return (place / "report" / "index.html").read_text()


def test_the_page_needs_no_other_file_and_no_script(tmp_path):
    text = report(tmp_path)
    page = Page(text)
    assert page.addresses
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert all(url.startswith("data:image/") for url in re.findall(r"url\((.*?)\)", text))
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "http" not in text
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]


def test_the_scores_stand_there_with_their_intervals(tmp_path):
    text = report(tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    for name in ("bleu_4", "rouge_l", "cider"):
        value, low, high = (f"{scores[name][key]:.4f}" for key in ("value", "low", "high"))
        assert f"<td>{value}<td>{low} to {high}" in text
    assert scores["tokeniser"] in text


def test_best_median_and_worst_are_shown_with_images_references_and_all_words(tmp_path):
    text = report(tmp_path)
    said = {
        line["image"]: line["caption"]
        for line in map(json.loads, (tmp_path / "captions.jsonl").read_text().splitlines())
    }
    shown = re.findall(r"<h3>(.*?)</h3><p>(\S+), CIDEr ([\d.]+)", text)
    assert len(shown) == len({image for _, image, _ in shown}) == 12
    assert all(said[image] == caption for caption, image, _ in shown)
    ciders = [float(cider) for _, _, cider in shown]
    assert ciders == sorted(ciders, reverse=True)
    assert [text.index(f"{title} captions") for title in ("Best", "Median", "Worst")] == sorted(
        text.index(f"{title} captions") for title in ("Best", "Median", "Worst")
    )
    assert "<li>A dog plays in the grass .</li>" in text
    assert text.count('class="map') == sum(len(said[image].split()) for _, image, _ in shown)
    assert text.count("data:image/jpeg") == 12


def test_the_heat_map_of_a_word_is_its_attention(tmp_path):
    attention = np.array([[0.1, 0.4], [0.0, 0.2]], dtype=np.float32)
    alpha = np.asarray(heat_map(attention))[..., 3]
    assert alpha.tolist() == [[52, 210], [0, 105]]
    maps = re.findall(r'src="data:image/png;base64,(.*?)"', report(tmp_path))
    first = Image.open(io.BytesIO(base64.b64decode(maps[0])))
    assert first.size == (2, 2)  # 64 px images have 2x2 regions


def test_a_decoder_without_attention_has_words_without_maps(tmp_path):
    text = report(tmp_path, decoder="merge", features="vector")
    assert 'class="map' not in text
    words = sum(len(caption.split()) for caption in re.findall(r"<h3>(.*?)</h3>", text))
    assert text.count("<figcaption>") == words >= 12


def test_a_small_split_is_shown_whole(tmp_path):
    text = report(tmp_path, dev=2)
    assert "All captions" in text
    assert text.count("<article>") == 2


def test_names_and_captions_cannot_write_html(tmp_path):
    data = data_directory(tmp_path / "data", train=2, dev=3)
    token = data / "Flickr8k.token.txt"
    token.write_text(token.read_text().replace("A dog", "<script>alert(1)</script> A dog"))
    torch_checkpoint.save(tmp_path / "best", tiny_unpublished())
    arguments = ["evaluate", str(tmp_path / "best"), "--data", str(data), "--device", "cpu"]
    assert main([*arguments, "--report", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report" / "index.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_curves_are_drawn_for_each_recorded_figure_and_marked_where_a_stage_starts(tmp_path):
    text = report(tmp_path)
    assert 'aria-label="train_loss"' in text
    assert 'aria-label="dev_cider"' in text
    assert 'aria-label="seconds"' not in text
    assert text.count('class="stage"') == 2
    assert "epoch 3: 0.4" in text


def test_a_curve_that_rises_is_drawn_rising():
    svg = learning_curves([{"dev_cider": 0.1}, {"dev_cider": 0.3}, {"dev_cider": 0.2}])
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', svg)]
    assert heights[1] < heights[2] < heights[0]


def test_a_checkpoint_without_history_says_so(tmp_path):
    assert "no history of its training" in report(tmp_path, history=[])


def said(*words: tuple[str, float]) -> Caption:
    spoken = tuple(Word(text, math.log(probability)) for text, probability in words)
    return Caption(" ".join(word.text for word in spoken), 0.0, 0.0, spoken)


def test_calibration_worked_by_hand():
    captions = {"x": said(("dog", 0.95), ("runs", 0.93)), "y": said(("cat", 0.25), ("dog", 1.0))}
    found = calibrate(captions, {"x": ["A dog .", "It runs ."], "y": ["a cat"]})
    assert found.words == 4
    low, high = found.bins[2], found.bins[9]
    assert (low.words, low.confidence, low.accuracy) == (1, pytest.approx(0.25), 1)
    assert (high.words, high.confidence) == (3, pytest.approx(0.96))
    assert high.accuracy == pytest.approx(2 / 3)
    assert found.expected_error == pytest.approx((0.75 + 3 * (0.96 - 2 / 3)) / 4)


def test_calibration_is_shown_with_the_number_of_words(tmp_path):
    text = report(tmp_path)
    captions = (tmp_path / "captions.jsonl").read_text().splitlines()
    words = sum(len(json.loads(line)["caption"].split()) for line in captions)
    assert f"over {words} words" in text
    assert 'aria-label="reliability"' in text


def test_figures_by_the_tutorials_rules_have_a_name_of_their_own(tmp_path, capsys):
    report(tmp_path, dev=3)
    arguments = ["evaluate", str(tmp_path / "best"), "--data", str(tmp_path / "data")]
    more = ["--rules", "tutorial", "--json", str(tmp_path / "both.json"), "--device", "cpu"]
    assert main([*arguments, *more]) == 0
    both = json.loads((tmp_path / "both.json").read_text())
    assert both.pop("tutorial")["rules"] == "tutorial"
    assert both == json.loads((tmp_path / "scores.json").read_text())
    assert "by the tutorial's rules" in capsys.readouterr().out
