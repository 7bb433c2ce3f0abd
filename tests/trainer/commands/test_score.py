"""The verb `score`: JSON lines against a token file, every refusal with its line or its image."""

import argparse
import json
import unicodedata

import pytest

from trainer.commands import score
from trainer.data.candidates import read_candidates
from trainer.errors import DataError, ScoringError

TOKENS = (
    "a.jpg#0\tA dog runs .\na.jpg#1\tThe dog is running .\nb.jpg#0\tA cat .\nc.jpg#0\tTwo cats .\n"
)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "tokens.txt").write_text(TOKENS)
    (tmp_path / "captions.jsonl").write_text(line("a.jpg", "a dog runs") + line("b.jpg", "a cat"))
    return tmp_path


def line(image: str, caption: str) -> str:
    return json.dumps({"image": image, "caption": caption}) + "\n"


def run(files, *more: str) -> int:
    parser = argparse.ArgumentParser()
    score.add_arguments(parser)
    captions, tokens = str(files / "captions.jsonl"), str(files / "tokens.txt")
    return score.run(parser.parse_args([captions, "--references", tokens, *more]))


def refused_captions(files, text: str, says: str) -> None:
    (files / "captions.jsonl").write_text(text)
    with pytest.raises(DataError, match=says):
        read_candidates(files / "captions.jsonl")


def test_the_images_of_the_captions_file_are_scored(files, capsys):
    assert run(files) == 0
    printed = capsys.readouterr().out
    assert "BLEU-1   1.0000" in printed
    assert "2 images" in printed


def test_a_list_that_the_captions_cover_is_accepted(files, capsys):
    (files / "list.txt").write_text("b.jpg\na.jpg\n")
    assert run(files, "--images", str(files / "list.txt")) == 0
    assert "2 images" in capsys.readouterr().out


def test_captions_that_do_not_cover_the_list_are_refused(files):
    (files / "list.txt").write_text("b.jpg\na.jpg\nc.jpg\n")
    with pytest.raises(ScoringError, match=r"without a caption: c\.jpg"):
        run(files, "--images", str(files / "list.txt"))


def test_an_image_without_references_is_refused(files):
    with (files / "captions.jsonl").open("a") as captions:
        captions.write(line("moon.jpg", "the moon"))
    with pytest.raises(DataError, match=r"references.*moon\.jpg"):
        run(files)


def test_other_keys_of_a_line_are_ignored(files):
    (files / "captions.jsonl").write_text('{"image": "a", "caption": "b", "log_prob": -1.5}\n')
    assert read_candidates(files / "captions.jsonl") == {"a": "b"}


@pytest.mark.parametrize(
    "text", ["a dog", '["a.jpg", "a dog"]', '{"image": "a.jpg"}', '{"image": 3, "caption": "a"}']
)
def test_a_malformed_line_is_refused_with_its_number(files, text):
    refused_captions(files, line("a.jpg", "a dog") + text + "\n", r"captions\.jsonl line 2")


def test_two_captions_for_one_image_are_refused_with_the_line(files):
    refused_captions(files, line("a", "a dog") + line("a", "a cat"), "line 2: a has a caption")


def test_an_empty_captions_file_is_refused(files):
    refused_captions(files, "", "empty")


def test_a_missing_captions_file_is_refused(files):
    with pytest.raises(DataError, match="missing"):
        read_candidates(files / "other.jsonl")


COCO = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
    "annotations": [
        {"image_id": 7, "caption": "A dog runs ."},
        {"image_id": 7, "caption": "The dog is running ."},
        {"image_id": 8, "caption": "A cat ."},
    ],
}
CAPTIONS = {
    "results.json": json.dumps(
        [{"image_id": 7, "caption": "a dog runs"}, {"image_id": 8, "caption": "a cat"}]
    ),
    "by_name.json": json.dumps({"a.jpg": "a dog runs", "b.jpg": "a cat"}),
    "lines.jsonl": line("a.jpg", "a dog runs") + line("b.jpg", "a cat"),
    "stems.jsonl": line("a", "a dog runs") + line("b", "a cat"),
}


@pytest.mark.parametrize("captions", CAPTIONS)
def test_cocos_results_and_references_are_scored(files, capsys, captions):
    (files / "captions.jsonl").write_text(CAPTIONS[captions])
    (files / "tokens.txt").write_text(json.dumps(COCO))
    assert run(files) == 0
    printed = capsys.readouterr().out
    assert "BLEU-1   1.0000" in printed
    assert "2 images" in printed


def test_references_may_be_any_file_that_can_be_imported(files, capsys):
    (files / "tokens.txt").write_text("image,caption\na.jpg,A dog runs\nb.jpg,A cat\n")
    assert run(files) == 0
    assert "BLEU-1   1.0000" in capsys.readouterr().out


CHINESE = "a.jpg#0\t一只白色的狗在草地上奔跑\nb.jpg#0\t一只白色的猫\n"


def test_captions_without_spaces_are_scored_by_their_characters_and_it_is_said(files, capsys):
    (files / "captions.jsonl").write_text(
        line("a.jpg", "一只黑色的狗在草地上奔跑") + line("b.jpg", "一只黑色的猫")
    )
    (files / "tokens.txt").write_text(CHINESE, encoding="utf-8")
    assert run(files) == 0
    printed = capsys.readouterr().out
    assert "tokeniser unicode-words-1" in printed
    assert 0.8 < float(printed.split("BLEU-1")[1].split()[0]) < 1


def test_a_tokeniser_may_be_named(files, capsys):
    assert run(files, "--tokeniser", "unicode-words-1") == 0
    assert "tokeniser unicode-words-1" in capsys.readouterr().out


def test_names_in_other_compositions_are_the_same_image(files, capsys):
    (files / "captions.jsonl").write_text(line(unicodedata.normalize("NFD", "ä.jpg"), "a dog"))
    (files / "tokens.txt").write_text("ä.jpg#0\tA dog .\n", encoding="utf-8")
    assert run(files) == 0
    assert "BLEU-1   1.0000" in capsys.readouterr().out
