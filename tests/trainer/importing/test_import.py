"""`prepare --from`: caption files become the official layout, or are refused with their places."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from support.tiny import photo
from trainer.__main__ import main
from trainer.data.flickr8k import read_split, split_names

CAPTIONS = {f"{index}.png": [f"A dog {index} .", f"One, two, {index}"] for index in range(10)}


@pytest.fixture
def place(tmp_path):
    (tmp_path / "photos").mkdir()
    for index, name in enumerate(CAPTIONS):
        (tmp_path / "photos" / name).write_bytes(photo(index))
    return tmp_path


def pairs() -> list[tuple[str, str]]:
    return [(image, text) for image, texts in CAPTIONS.items() for text in texts]


def csv_text() -> str:
    return "image,caption\n" + "".join(f'{image},"{text}"\n' for image, text in pairs())


def jsonl_text() -> str:
    return "".join(json.dumps({"image": i, "captions": t}) + "\n" for i, t in CAPTIONS.items())


def coco_text() -> str:
    images = [{"id": n, "file_name": name} for n, name in enumerate(CAPTIONS)]
    notes = [{"image_id": list(CAPTIONS).index(i), "caption": t} for i, t in pairs()]
    return json.dumps({"images": images, "annotations": notes})


def two_images(*, ids: tuple[int, int], described: int) -> str:
    images = [{"id": key, "file_name": f"{n}.png"} for n, key in enumerate(ids)]
    return json.dumps({"images": images, "annotations": [{"image_id": described, "caption": "a"}]})


def karpathy(*splits: str) -> str:
    images = [
        {"filename": name, "split": splits[n % len(splits)], "sentences": [{"raw": t} for t in of]}
        for n, (name, of) in enumerate(CAPTIONS.items())
    ]
    return json.dumps({"images": images})


def tokens_text() -> str:
    numbered = [(i, n, t) for i, of in CAPTIONS.items() for n, t in enumerate(of)]
    return "".join(f"{image}#{number}\t{text}\n" for image, number, text in reversed(numbered))


def prepare(place: Path, file: str, text: str, *more: str, out: str = "data") -> int:
    (place / file).write_text(text, encoding="utf-8")
    folders = ["--images", str(place / "photos"), "--out", str(place / out)]
    return main(["prepare", "--from", str(place / file), *folders, *more])


def names(place: Path, split: str, out: str = "data") -> list[str]:
    return [example.image for example in read_split(place / out, split).examples]


def refused(place: Path, capsys, file: str, text: str, *says: str, more: tuple[str, ...] = ()):
    assert prepare(place, file, text, *more) == 1
    printed = capsys.readouterr().err
    for words in says:
        assert words in printed
    assert not (place / "data").exists()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("c.csv", csv_text()),
        ("c.jsonl", jsonl_text()),
        ("c.json", coco_text()),
        ("c.token", tokens_text()),
    ],
    ids=["csv", "jsonl", "coco", "tokens"],
)
def test_every_kind_without_splits_becomes_the_same_directory(place, file, text):
    assert prepare(place, file, text, "--dev-share", "0.2") == 0
    splits = [read_split(place / "data", split) for split in ("train", "dev")]
    assert [len(split.examples) for split in splits] == [8, 2]
    found = {
        example.image: list(example.captions) for split in splits for example in split.examples
    }
    assert found == CAPTIONS
    assert prepare(place, "other.csv", csv_text(), "--dev-share", "0.2", out="again") == 0
    assert names(place, "dev", "again") == names(place, "dev")


def test_karpathys_splits_are_kept_and_renamed_aloud(place, capsys):
    assert prepare(place, "c.json", karpathy("train", "restval", "val", "test")) == 0
    printed = capsys.readouterr().out
    assert "read as karpathy" in printed
    assert "split val of the source becomes dev" in printed
    assert "split restval of the source becomes train" in printed
    assert split_names(place / "data") == ["dev", "test", "train"]
    assert names(place, "dev") == ["2.png", "6.png"]
    assert names(place, "train") == ["0.png", "1.png", "4.png", "5.png", "8.png", "9.png"]


def test_the_seed_decides_the_split_and_names_do_not(place):
    for seed in ("1", "1", "2", "3"):
        out = f"data{len(list(place.glob('data*')))}"
        assert (
            prepare(place, "c.csv", csv_text(), "--dev-share", "0.3", "--seed", seed, out=out) == 0
        )
    dev = [names(place, "dev", f"data{n}") for n in range(4)]
    assert dev[0] == dev[1]
    assert len(set(map(tuple, dev))) > 1
    for path in sorted((place / "photos").iterdir()):
        path.rename(path.with_name(f"x{path.name}"))
    renamed = csv_text().replace("\n", "\nx").removesuffix("x")
    assert prepare(place, "c.csv", renamed, "--dev-share", "0.3", out="renamed") == 0
    assert names(place, "dev", "renamed") == [f"x{name}" for name in dev[0]]


def test_one_picture_under_two_names_stays_in_one_split(place):
    for index in range(5, 10):  # the same five pictures again, compressed another way
        file = io.BytesIO()
        Image.open(io.BytesIO(photo(index - 5))).save(file, "PNG", compress_level=0)
        assert file.getvalue() != photo(index - 5)
        (place / "photos" / f"{index}.png").write_bytes(file.getvalue())
    for seed in map(str, range(5)):
        share = ["--dev-share", "0.4", "--seed", seed]
        assert prepare(place, "c.csv", csv_text(), *share, out=f"data{seed}") == 0
        dev = {int(name.removesuffix(".png")) % 5 for name in names(place, "dev", f"data{seed}")}
        train = {
            int(name.removesuffix(".png")) % 5 for name in names(place, "train", f"data{seed}")
        }
        assert len(dev) == 2
        assert dev.isdisjoint(train)


def test_images_are_hard_links_so_they_cost_nothing_and_outlive_their_folder(place):
    assert prepare(place, "c.csv", csv_text()) == 0
    linked = place / "data" / "Flicker8k_Dataset" / "0.png"
    assert linked.samefile(place / "photos" / "0.png")
    assert not linked.is_symlink()
    (place / "photos" / "0.png").unlink()
    assert linked.read_bytes() == photo(0)


def test_where_links_are_impossible_images_are_copied(place, monkeypatch):
    def refuse(*args):
        raise OSError

    monkeypatch.setattr("trainer.importing.layout_writer.os.link", refuse)
    assert prepare(place, "c.csv", csv_text()) == 0
    copied = place / "data" / "Flicker8k_Dataset" / "0.png"
    assert copied.read_bytes() == photo(0)
    assert not copied.samefile(place / "photos" / "0.png")


def test_folders_of_the_source_become_part_of_the_name(place):
    (place / "photos" / "deep").mkdir()
    (place / "photos" / "0.png").rename(place / "photos" / "deep" / "0.png")
    assert prepare(place, "c.csv", csv_text().replace("\n0.png", "\ndeep/0.png")) == 0
    assert "deep_0.png" in names(place, "train") + names(place, "dev")


def test_other_columns_are_taken_when_named(place):
    text = csv_text().replace("image,caption", "file_name,text")
    assert prepare(place, "c.csv", text, "--image-key", "file_name", "--caption-key", "text") == 0
    assert len(names(place, "train")) == 9


def test_files_without_a_caption_stay_out_aloud(place, capsys):
    (place / "photos" / "more.png").write_bytes(photo(99))
    assert prepare(place, "c.csv", csv_text()) == 0
    assert "1 files without a caption stay out" in capsys.readouterr().out


def test_white_space_inside_a_caption_is_brought_to_single_spaces(place):
    assert prepare(place, "c.csv", csv_text().replace("A dog 3 .", " A\tdog\n 3 . ")) == 0
    assert "3.png#0\tA dog 3 .\n" in (place / "data" / "Flickr8k.token.txt").read_text()


SPLIT = "image,caption,split\n"


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("c.csv", "bild,satz,mehr\n0.png,A dog,A cat\n", "--image-key bild --caption-key satz"),
        ("c.csv", "image,image,caption\n0.png,a,b\n", "line 1 names a column twice"),
        ("c.csv", "image,caption\n0.png,One, two\n", "line 2: expected 2 fields"),
        ("c.csv", "image,caption\n0.png,\n", "line 2: expected an image and a caption"),
        ("c.csv", 'image,caption\n0.png,"a\n', 'write " inside as ""'),
        ("c.csv", "image,caption\n", "at least one caption"),
        ("c.jsonl", '{"image": "0.png"}\n', "which of them holds captions cannot be told"),
        ("c.jsonl", '{"image": "0.png", "caption": "a"}\n{"image"\n', "line 2: no JSON"),
        ("c.json", '{"images": [], "info": 1}', "holds no captions: write"),
        ("c.json", '{"images": [\n', "line 2 column"),
        ("c.json", '{"images": [{"id": 1}], "annotations": [{}]}', "images[0]: expected id"),
        (
            "c.json",
            two_images(ids=(1, 1), described=1),
            "id 1: one id stands for two images",
        ),
        (
            "c.json",
            two_images(ids=(1, 2), described=7),
            "annotations[0]: its image_id is not that of one entry of images, got 7",
        ),
        ("c.json", '{"images": [{"filename": "0.png", "sentences": []}]}', "images[0]: expected"),
        ("c.txt", "A dog runs.\nIt runs.\n", "no kind of caption file that is known"),
        ("c.txt", "0.png#0\tA dog .0.png#1\tA cat\n", "line 1: two lines are glued together"),
        ("c.token", "0.png#0\ta\n0.png#0\tb\n", "line 2: this image#n came before, got 0.png#0"),
        ("c.xlsx", "", "is a spreadsheet: save it as CSV"),
        ("c.csv", "image,caption\nnone.png,A dog\n", "first 'none.png' of"),
        ("c.csv", "image,caption\n../c.csv,A dog\n", "none of 1 images is in"),
        ("c.csv", SPLIT + "0.png,a,train\n1.png,a,\n", "line 3: an image has no split"),
        ("c.csv", SPLIT + "0.png,a,train\n0.png,b,dev\n", "got 0.png in dev and in train"),
        ("c.csv", SPLIT + "0.png,a,a/b\n", "line 2: expected the name of a split"),
        ("c.csv", "image,caption\n0.png,a\n", "at least 2 different images"),
    ],
)
def test_what_is_malformed_is_refused_with_its_place(place, capsys, file, text, says):
    refused(place, capsys, file, text, says)


def test_all_malformed_lines_are_named_and_not_only_the_first(place, capsys):
    text = csv_text() + "a,b,c\nb,c,d\n"
    refused(place, capsys, "c.csv", text, "2 of 22 entries", "line 22:", "line 23", "--skip-bad")


def test_all_broken_images_are_named(place, capsys):
    for name in ("3.png", "7.png"):
        (place / "photos" / name).write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    refused(place, capsys, "c.csv", csv_text(), "3.png", "7.png", "damaged")


def test_two_images_that_would_get_one_name_are_refused(place, capsys):
    (place / "photos" / "a").mkdir()
    (place / "photos" / "a" / "0.png").write_bytes(photo(50))
    (place / "photos" / "a_0.png").write_bytes(photo(51))
    text = csv_text() + "a/0.png,x\na_0.png,y\n"
    refused(place, capsys, "c.csv", text, "line 23: two images get one name")


def test_a_share_is_refused_where_the_source_has_splits(place, capsys):
    more = ("--dev-share", "0.2")
    refused(place, capsys, "c.json", karpathy("train", "val"), "its own splits", more=more)
    refused(place, capsys, "c.csv", csv_text(), "between 0 and 1", more=("--dev-share", "1.5"))


def test_a_directory_that_exists_is_left_alone(place, capsys):
    assert prepare(place, "c.csv", csv_text()) == 0
    before = names(place, "dev")
    assert prepare(place, "c.csv", csv_text(), "--seed", "9") == 1
    assert "data exists" in capsys.readouterr().err
    assert names(place, "dev") == before


def test_a_folder_must_be_named(place, capsys):
    (place / "c.csv").write_text(csv_text())
    assert main(["prepare", "--from", str(place / "c.csv")]) == 1
    assert "--images FOLDER and --out DIR" in capsys.readouterr().err


def test_a_leak_in_the_sources_own_splits_is_an_error_of_the_doctor(place, capsys):
    (place / "photos" / "1.png").write_bytes(photo(0))
    assert prepare(place, "c.json", karpathy("train", "val")) == 1
    assert "the same picture under two names: 0.png = 1.png" in capsys.readouterr().out
