"""The verb `caption` on folders, with tables, sidecars and metadata, here and by a service."""

import csv
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from app import loading
from app.captioner.captions import Caption, Word
from app.captioner.errors import CheckpointError
from app.cli import main
from app.files import attention
from support.fake import CAT, DOG, FakeCaptioner, photo_folder
from support.photos import photo


@pytest.fixture
def captioner(monkeypatch):
    """Caption with the fake, which says of a file what its bytes say."""
    fake = FakeCaptioner()
    monkeypatch.setattr(loading, "load_captioner", lambda _: fake)
    return fake


@pytest.fixture
def folder(tmp_path):
    """Give a folder with photos in it and in a folder inside it."""
    return photo_folder(tmp_path / "photos")


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_a_folder_is_captioned_with_all_that_is_in_it(captioner, folder, capsys):
    assert main(["caption", str(folder)]) == 0
    assert lines(capsys) == [f"{folder}/b.JPG: a dog runs", f"{folder}/inner/a.png: a cat"]


def test_a_pattern_is_expanded_and_no_photo_is_captioned_twice(captioner, folder, capsys):
    assert main(["caption", f"{folder}/**/*.png", str(folder)]) == 0
    assert lines(capsys) == [f"{folder}/inner/a.png: a cat", f"{folder}/b.JPG: a dog runs"]


def test_a_dash_is_standard_input(captioner, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(DOG)))
    assert main(["caption", "-"]) == 0
    assert lines(capsys) == ["-: a dog runs"]


def test_photos_share_batches_and_keep_their_order(captioner, tmp_path, capsys):
    names = [tmp_path / f"{n:02}.jpg" for n in range(20)]
    for n, name in enumerate(names):
        name.write_bytes(b"broken" if n == 3 else f"photo {n}".encode())
    captioner.decodes_in_batch = True
    captioner.engine.max_concurrent_batches = 2
    assert main(["caption", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert told.out.splitlines() == [f"{name}: photo {n}" for n, name in enumerate(names) if n != 3]
    assert f"{names[3]}: damaged" in told.err
    assert sorted(map(len, captioner.batches)) == [4, 8, 8]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere.jpg", "nowhere.jpg: No such file or directory"),
        ("none-*.jpg", "none-*.jpg: No such file, and no file has such a name"),
        ("", "no file in it ends in .apng, .avif, .bmp, .gif"),
    ],
)
def test_what_leads_nowhere_is_told_before_the_network_is_loaded(
    name, told, tmp_path, monkeypatch, capsys
):
    def refuse(settings):
        raise AssertionError

    monkeypatch.setattr(loading, "load_captioner", refuse)
    assert main(["caption", str(tmp_path / name)]) == 1
    assert told in capsys.readouterr().err


# --output


def table(path):
    lines = path.read_text().splitlines()
    rows = csv.DictReader(lines) if path.suffix == ".csv" else map(json.loads, lines)
    return [(row["image"], row["caption"]) for row in rows]


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv"])
def test_a_later_run_adds_the_rest(captioner, folder, tmp_path, name, capsys):
    output = tmp_path / name
    assert main(["caption", f"{folder}/b.JPG", "--output", str(output)]) == 0
    assert main(["caption", str(folder), "--output", str(output)]) == 0
    assert table(output) == [(f"{folder}/b.JPG", "a dog runs"), (f"{folder}/inner/a.png", "a cat")]
    assert captioner.batches == [[DOG], [CAT]]
    assert lines(capsys) == []
    assert main(["caption", str(folder), "--output", str(output)]) == 0
    assert len(captioner.batches) == 2  # there was nothing left to do


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv"])
def test_a_line_that_was_not_finished_is_written_anew(captioner, folder, tmp_path, name):
    output = tmp_path / name
    assert main(["caption", str(folder), "--output", str(output)]) == 0
    whole = output.read_bytes()
    output.write_bytes(whole[:-5])
    assert main(["caption", str(folder), "--output", str(output)]) == 0
    assert output.read_bytes() == whole


def test_a_photo_that_failed_is_tried_again(captioner, folder, tmp_path):
    output, bad = tmp_path / "captions.jsonl", folder / "c.jpg"
    bad.write_bytes(b"broken")
    assert main(["caption", str(folder), "--output", str(output)]) == 1
    bad.write_bytes(b"a horse")
    assert main(["caption", str(folder), "--output", str(output)]) == 0
    assert table(output)[-1] == (str(bad), "a horse")


def test_a_table_in_another_format_is_refused(captioner, folder, tmp_path, capsys):
    assert main(["caption", str(folder), "--output", str(tmp_path / "captions.xlsx")]) == 1
    assert ".jsonl or .csv" in capsys.readouterr().err
    assert captioner.batches == []


def test_a_csv_has_a_row_for_each_candidate(captioner, folder, tmp_path):
    output = tmp_path / "captions.csv"
    options = ["--n-best", "2", "--output", str(output)]
    assert main(["caption", f"{folder}/b.JPG", *options]) == 0
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert [(row["rank"], row["caption"]) for row in rows] == [
        ("1", "a dog runs"), ("2", "a dog runs 1")
    ]  # fmt: skip


# Beside and inside the photos


def test_a_sidecar_stands_beside_each_photo(captioner, folder, capsys):
    assert main(["caption", str(folder), "--sidecar", "--json"]) == 0
    assert (folder / "b.JPG.txt").read_text() == "a dog runs\n"
    assert (folder / "inner/a.png.txt").read_text() == "a cat\n"
    assert [json.loads(line)["caption"] for line in lines(capsys)] == ["a dog runs", "a cat"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_caption_is_written_into_the_photo_and_its_pixels_stay(
    kind, tmp_path, monkeypatch, capsys
):
    pyexiv2 = pytest.importorskip("pyexiv2")
    from PIL import Image  # noqa: PLC0415

    class OneCaption(FakeCaptioner):
        def read(self, _data, *, max_pixels):
            return super().read(b"a dog \xc3\xa9", max_pixels=max_pixels)

    monkeypatch.setattr(loading, "load_captioner", lambda _: OneCaption())
    file = tmp_path / f"a.{kind.lower()}"
    file.write_bytes(photo(kind=kind))
    before = Image.open(file).tobytes()
    assert main(["caption", str(file), "--write-metadata"]) == 0, capsys.readouterr().err
    with pyexiv2.Image(str(file)) as image:
        assert image.read_xmp()["Xmp.dc.description"] == {'lang="x-default"': "a dog é"}
        if kind == "JPEG":
            assert image.read_iptc()["Iptc.Application2.Caption"] == "a dog é"
    assert Image.open(file).tobytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [file.name]


def test_a_photo_that_takes_no_metadata_is_told_and_stays_as_it_was(captioner, folder, capsys):
    pytest.importorskip("pyexiv2")
    assert main(["caption", f"{folder}/b.JPG", "--write-metadata"]) == 1
    assert "b.JPG" in capsys.readouterr().err
    assert (folder / "b.JPG").read_bytes() == DOG
    assert [each.name for each in folder.glob(".*")] == []


def test_without_its_library_metadata_is_refused_at_once(captioner, folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyexiv2", None)
    assert main(["caption", str(folder), "--write-metadata"]) == 1
    assert "caption-service[metadata]" in capsys.readouterr().err
    assert captioner.batches == []


# The end


def test_who_interrupts_keeps_what_is_done(captioner, folder, tmp_path, monkeypatch):
    output = tmp_path / "captions.jsonl"

    def interrupted(images, still_waiting=None):
        raise KeyboardInterrupt

    assert main(["caption", f"{folder}/b.JPG", "--output", str(output)]) == 0
    monkeypatch.setattr(captioner, "caption", interrupted)
    assert main(["caption", str(folder), "--output", str(output)]) == 130
    assert len(table(output)) == 1


def test_a_checkpoint_that_cannot_be_loaded_is_told(folder, monkeypatch, capsys):
    def refuse(settings):
        raise CheckpointError("not whole")

    monkeypatch.setattr(loading, "load_captioner", refuse)
    assert main(["caption", str(folder)]) == 1
    assert "not whole" in capsys.readouterr().err


# --url


def test_a_service_captions_the_same(url, folder, tmp_path, capsys):
    (folder / "z.jpg").write_bytes(b"broken")
    assert main(["caption", str(folder), "--url", url, "--n-best", "2"]) == 1
    told = capsys.readouterr()
    said = [line for line in told.out.splitlines() if line.startswith(str(folder))]
    assert said == [
        f"{folder}/b.JPG: a dog runs",
        f"{folder}/b.JPG: a dog runs 1",
        f"{folder}/inner/a.png: a cat",
        f"{folder}/inner/a.png: a cat 1",
    ]
    assert f"{folder}/z.jpg: Undecodable image: damaged" in told.err


def test_a_service_that_is_not_there_is_told_by_each_photo(folder, monkeypatch, capsys):
    monkeypatch.setenv("CAPTION_DEADLINE_S", "0.2")
    monkeypatch.setenv("CAPTION_BODY_TIMEOUT_S", "0.2")
    assert main(["caption", f"{folder}/b.JPG", "--url", "http://127.0.0.1:1"]) == 1
    assert "b.JPG: " in capsys.readouterr().err


@pytest.mark.parametrize("from_service", [False, True])
def test_a_caption_of_low_confidence_is_withheld_everywhere(
    captioner, folder, capsys, url, from_service
):
    table = folder.parent / "out.csv"
    places = ["--sidecar", "--output", str(table), "--json"]
    service = ["--url", url] if from_service else []
    assert main(["caption", *service, *places, "--min-confidence", "0.9", str(folder)]) == 0
    said = [json.loads(line) for line in lines(capsys) if line.startswith("{")]  # and its log
    assert [(each["caption"], each["withheld"]) for each in said] == [(None, "low_confidence")] * 2
    assert said[0]["tags"] == [{"label": "dog", "probability": 0.75}]
    assert said[0]["confidence"] == 0.8
    assert not list(folder.glob("**/*.txt"))[1:]  # none but the one that was there
    with table.open() as file:
        assert [row["caption"] for row in csv.DictReader(file)] == ["", ""]


@pytest.mark.parametrize("from_service", [False, True])
def test_captions_are_told_as_asked(captioner, folder, capsys, url, from_service):
    (folder / "b.JPG").write_bytes(b"a man runs")
    service = ["--url", url] if from_service else []
    options = ["--neutral", "--style", "alt", "--tags"]
    assert main(["caption", *service, *options, str(folder / "b.JPG")]) == 0
    name = folder / "b.JPG"
    said = [line for line in lines(capsys) if line.startswith(str(name))]  # beside the log
    assert said == [f"{name}: A person runs", f"{name}: may show: dog"]


def test_withheld_lines_say_why(captioner, folder, capsys):
    assert main(["caption", "--min-confidence", "1", str(folder / "b.JPG")]) == 0
    assert lines(capsys) == [f"{folder}/b.JPG: (low confidence; may show: dog)"]


def test_attention_is_drawn_a_tile_for_each_word(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CAPTION_CHECKPOINT", str(checkpoint))
    (tmp_path / "photo.png").write_bytes(photo())
    drawn = tmp_path / "out.png"
    assert main(["caption", str(tmp_path / "photo.png"), "--attention", str(drawn)]) == 0
    words = lines(capsys)[0].partition(": ")[2].split()
    with Image.open(drawn) as picture:
        tiles = len(words) + 1
        assert picture.size == (224 * min(5, tiles), 248 * -(-tiles // 5))


def test_a_word_lights_what_it_looked_at():
    looked = np.array([[0.0, 0.0], [0.0, 0.9]], np.float32)
    words = (Word("dog", -0.1, looked, 0.1),)
    square = np.full((64, 64, 3), 200, np.uint8)
    drawn = np.asarray(attention.picture(square, Caption("dog", -0.1, -0.1, words)))
    photo_tile, word_tile = drawn[:224, :224], drawn[:224, 224:448]
    assert (photo_tile == 200).all()
    assert word_tile[-20:, -20:].mean() > 190
    assert word_tile[:20, :20].mean() == pytest.approx(50, abs=5)
    without = Caption("dog", -0.1, -0.1, (Word("dog", -0.1),))
    with pytest.raises(ValueError, match="has no attention"):
        attention.picture(square, without)


@pytest.mark.parametrize("more", [["another.png"], ["--url", "http://127.0.0.1:1"]])
def test_attention_is_of_one_photo_captioned_here(more, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load_captioner", None)
    for name in ("photo.png", "another.png"):
        (tmp_path / name).write_bytes(photo())
    asked = [str(tmp_path / each) if each.endswith(".png") else each for each in more]
    arguments = ["caption", str(tmp_path / "photo.png"), *asked]
    assert main([*arguments, "--attention", str(tmp_path / "out.png")]) == 1
    assert "name one, and no --url" in capsys.readouterr().err
