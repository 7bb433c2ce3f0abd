"""`prepare --from` takes the caption files and folders that people have, as they have them."""

import csv
import io
import json
import tarfile
from pathlib import Path

import pytest

from support.tiny import photo
from trainer.__main__ import main
from trainer.data.flickr8k import read_split, split_names

NAMES = [f"p{index}.png" for index in range(6)]
FIRST = {name: f"A dog runs {index} ." for index, name in enumerate(NAMES)}
SECOND = {name: f"One cat, {index}" for index, name in enumerate(NAMES)}
BOTH = {name: (FIRST[name], SECOND[name]) for name in NAMES}


@pytest.fixture
def place(tmp_path):
    (tmp_path / "photos").mkdir()
    for index, name in enumerate(NAMES):
        (tmp_path / "photos" / name).write_bytes(photo(index))
    return tmp_path


def prepare(place: Path, *sources: str, images: str | None = "photos", more=()) -> int:
    folder = [] if images is None else ["--images", str(place / images)]
    names = [str(place / source) for source in sources]
    return main(["prepare", "--from", *names, *folder, "--out", str(place / "data"), *more])


def captions(place: Path) -> dict[str, tuple[str, ...]]:
    return {
        example.image: example.captions
        for name in split_names(place / "data")
        for example in read_split(place / "data", name).examples
    }


def table(*, delimiter=",", header=("image", "caption"), pairs=None) -> str:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    if header:
        writer.writerow(header)
    writer.writerows(pairs or FIRST.items())
    return file.getvalue()


def rows(**names: str) -> list[dict[str, str]]:
    return [{names["image"]: n, names["caption"]: text} for n, text in FIRST.items()]


ONE_CAPTION = {
    "capitals.csv": table(header=("Image", "Caption")),
    "german.csv": "\ufeff" + table(delimiter=";", header=("Image Name", "Comment")),
    "tabs.tsv": table(delimiter="\t"),
    "kaggle.txt": table(),
    "pipes.csv": table(delimiter="|", header=("image_name", " comment")).replace("|", "| "),
    "bare.csv": table(header=None),
    "bare.txt": table(header=None, delimiter="\t"),
    "empty_cells.csv": "".join(f"{line},,\n" for line in table().splitlines()),
    "index.csv": table(
        header=("", "image", "caption"), pairs=[(1, *each) for each in FIRST.items()]
    ),
    "unknown_names.csv": table(header=("bild", "satz")),
    "metadata.jsonl": "\n".join(map(json.dumps, rows(image="file_name", caption="text"))),
    "list.json": json.dumps(rows(image="image", caption="caption")),
    "data.json": json.dumps({"name": "x", "data": rows(image="image_path", caption="caption_str")}),
    "pandas.json": json.dumps(
        {
            "image": dict(enumerate(NAMES)),
            "caption": dict(enumerate(FIRST.values())),
        }
    ),
    "lists.json": json.dumps({"image": NAMES, "caption": list(FIRST.values())}),
    "by_name.json": json.dumps(FIRST),
    "nested.json": json.dumps({"set": {"images": rows(image="file_name", caption="caption")}}),
    "headed.txt": "image caption\n" + "".join(f"{n} {text}\n" for n, text in FIRST.items()),
    "control.csv": table().replace("runs", "\x07runs\x00"),
    "only_images.json": json.dumps({"images": rows(image="file_name", caption="caption")}),
    "only_notes.json": json.dumps({"annotations": rows(image="image_id", caption="caption")}),
    "languages.txt": "".join(f"{name}#zhm#0 {text}\n" for name, text in FIRST.items()),
    "objects.json": json.dumps({name: {"caption": text} for name, text in FIRST.items()}),
    "jsonl_as.json": "\n".join(map(json.dumps, rows(image="img", caption="sentence"))),
    "json_as.txt": json.dumps(rows(image="filename", caption="description")),
    "spaces.txt": "".join(f"{name}#0   {text}\n" for name, text in FIRST.items()),
    "unnumbered.txt": "".join(f"{Path(n).stem}\t{text}\n" for n, text in FIRST.items()),
    "plain.txt": "".join(f"{Path(n).stem} {text}\n" for n, text in FIRST.items()),
    "named.lst": "".join(f"{name} {text}\n" for name, text in FIRST.items()),
}


@pytest.mark.parametrize("file", ONE_CAPTION)
def test_one_caption_an_image_is_read_whatever_the_file_looks_like(place, file):
    (place / file).write_text(ONE_CAPTION[file], encoding="utf-8")
    assert prepare(place, file) == 0
    assert captions(place) == {name: (text,) for name, text in FIRST.items()}


WIDE = [(name, *of) for name, of in BOTH.items()]
SEVERAL_CAPTIONS = {
    "wide.csv": table(header=("file_name", "caption_0", "caption_1"), pairs=WIDE),
    "numbers.csv": table(
        delimiter="|",
        header=("image_name", " comment_number", " comment"),
        pairs=[(name, n, text) for name, of in BOTH.items() for n, text in enumerate(of)],
    ),
    "by_name.json": json.dumps(BOTH),
    "lists.jsonl": "\n".join(
        json.dumps({"image": name, "captions": of}) for name, of in BOTH.items()
    ),
    "bare.csv": table(header=None, pairs=WIDE),
    "raw.json": json.dumps(
        [{"filename": n, "sentences": [{"raw": t} for t in of]} for n, of in BOTH.items()]
    ),
}


@pytest.mark.parametrize("file", SEVERAL_CAPTIONS)
def test_several_captions_an_image_are_all_read(place, file):
    (place / file).write_text(SEVERAL_CAPTIONS[file], encoding="utf-8")
    assert prepare(place, file) == 0
    assert captions(place) == BOTH


@pytest.mark.parametrize("keys", [["en_*"], ["en_1", "en_2"], ["en_1,en_2"]])
def test_caption_columns_may_be_named_one_by_one_or_by_a_pattern(place, keys):
    header = ("photo", "en_1", "en_2", "de_1")
    text = table(header=header, pairs=[(*row, "Ein Hund") for row in WIDE])
    (place / "c.csv").write_text(text)
    more = [word for key in keys for word in ("--caption-key", key)]
    assert prepare(place, "c.csv", more=more) == 0
    assert captions(place) == BOTH


def test_a_column_that_is_not_there_is_answered_with_those_that_are(place, capsys):
    (place / "c.csv").write_text(table())
    assert prepare(place, "c.csv", more=["--caption-key", "text"]) == 1
    assert "no column 'text': give --caption-key one of image, caption" in capsys.readouterr().err


def test_what_was_found_out_about_a_table_is_said(place, capsys):
    (place / "c.csv").write_text(table(delimiter=";", header=("bild", "satz")))
    assert prepare(place, "c.csv") == 0
    said = capsys.readouterr().out
    assert "c.csv is read as csv" in said
    assert "has semicolons between its columns" in said
    assert "has images in bild, captions in satz" in said


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_other_encodings_are_read_by_their_mark_or_by_name(place, capsys, encoding):
    text = table(pairs=[(name, f"Ein Käfer läuft {name}") for name in NAMES])
    (place / "c.csv").write_bytes(text.encode(encoding))
    if encoding == "cp1252":
        assert prepare(place, "c.csv") == 1
        assert "--encoding cp1252" in capsys.readouterr().err
    assert prepare(place, "c.csv", more=["--encoding", encoding]) == 0
    assert captions(place)["p0.png"] == ("Ein Käfer läuft p0.png",)


def coco(names: list[str], *, quoted: bool = False, **more) -> str:
    images = [{"id": str(n) if quoted else n, "file_name": name} for n, name in enumerate(names)]
    notes = [{"image_id": n, "caption": FIRST[name], **more} for n, name in enumerate(names)]
    return json.dumps({"images": images, "annotations": notes})


def test_cocos_train_and_val_come_together_with_their_splits(place, capsys):
    (place / "captions_train2014.json").write_text(coco(NAMES[:4]))
    (place / "captions_val2014.json").write_text(coco(NAMES[4:]))
    assert prepare(place, "captions_train2014.json", "captions_val2014.json") == 0
    assert len(read_split(place / "data", "train").examples) == 4
    assert len(read_split(place / "data", "dev").examples) == 2
    assert "captions_val2014.json becomes split dev" in capsys.readouterr().out


def test_from_may_be_given_several_times(place):
    (place / "a.csv").write_text(table(pairs=list(FIRST.items())[:3]))
    (place / "b.csv").write_text(table(pairs=list(FIRST.items())[3:]))
    assert prepare(place, "a.csv", more=["--from", str(place / "b.csv")]) == 0
    assert len(captions(place)) == 6


def test_ids_in_quotes_are_the_same_ids(place):
    (place / "c.json").write_text(coco(NAMES, quoted=True))
    assert prepare(place, "c.json") == 0
    assert len(captions(place)) == 6


def test_captions_that_their_own_file_rejects_stay_out(place, capsys):
    content = json.loads(coco(NAMES))
    for note in content["annotations"][:2]:
        note["is_rejected"] = True
    (place / "c.json").write_text(json.dumps(content))
    assert prepare(place, "c.json") == 0
    assert set(captions(place)) == set(NAMES[2:])
    assert "2 captions marked is_rejected" in capsys.readouterr().out


BOXES = {"images": [{"id": 0, "file_name": "p0.png"}], "annotations": [{"image_id": 0, "bbox": []}]}
NO_CAPTIONS = {
    "boxes.json": (json.dumps(BOXES), "boxes of objects, no captions"),
    "boxes.csv": ("image,bbox\np0.png,1 2 3 4\n", "boxes or outlines of objects, no captions"),
    "classes.csv": ("image,label\np0.png,dog\n", "classes, no captions"),
    "vqa.json": (json.dumps({"questions": [{"question": "What?"}]}), "questions, no captions"),
    "results.json": (json.dumps([{"image_id": 7, "caption": "a"}]), "trainer score"),
    "notes.json": (json.dumps({"annotations": [{"image_id": 7, "caption": "a"}]}), "no images"),
    "urls.tsv": ("caption\turl\nA dog\thttp://h/x\n", "img2dataset"),
    "headless.tsv": ("A dog\thttp://h/x.jpg\nA cat\thttp://h/y.jpg\n", "img2dataset"),
    "sheet.xlsx": ("PK", "save it as CSV"),
    "captions.zip": ("PK", "unpack it"),
    "captions.pkl": ("x", "write image and caption into a CSV"),
    "empty.txt": ("\n", "is empty"),
}


@pytest.mark.parametrize("file", NO_CAPTIONS)
def test_a_file_without_captions_is_told_for_what_it_is_in_one_line(place, capsys, file):
    text, says = NO_CAPTIONS[file]
    (place / file).write_text(text)
    assert prepare(place, file) == 1
    printed = capsys.readouterr().err
    assert says in printed
    assert len(printed.splitlines()) == 1


def test_a_folder_of_pairs_is_read_with_its_own_images(place):
    for name, of in BOTH.items():
        (place / "photos" / name).with_suffix(".txt").write_text("\n".join(of) + "\n")
    assert prepare(place, "photos", images=None) == 0
    assert captions(place) == BOTH


def test_a_folder_with_a_caption_file_is_answered_with_its_name(place, capsys):
    (place / "photos" / "mine.csv").write_text(table())
    assert prepare(place, "photos", images=None) == 1
    assert "name the file, for instance" in capsys.readouterr().err


def test_a_folder_of_several_files_is_answered_with_the_likeliest(place, capsys):
    (place / "text").mkdir()
    for name in ("a_readme.txt", "my_captions.csv", "z.csv"):
        (place / "text" / name).write_text(table())
    assert prepare(place, "text") == 1
    assert "my_captions.csv" in capsys.readouterr().err


def test_a_directory_in_the_layout_needs_no_import(place, capsys):
    (place / "c.csv").write_text(table())
    assert prepare(place, "c.csv") == 0
    assert main(["prepare", "--from", str(place / "data"), "--out", str(place / "again")]) == 1
    assert "in Flickr8k's layout already" in capsys.readouterr().err


def test_imagefolders_have_their_metadata_beside_the_images_of_each_split(place):
    for split, names in (("train", NAMES[:4]), ("validation", NAMES[4:])):
        folder = place / "photos" / split
        folder.mkdir()
        for name in names:
            (place / "photos" / name).rename(folder / name)
        lines = [{"file_name": name, "text": FIRST[name]} for name in names]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert prepare(place, "photos", images=None) == 0
    train = read_split(place / "data", "train").examples
    assert [example.image for example in train] == [f"train_{name}" for name in NAMES[:4]]
    assert len(read_split(place / "data", "dev").examples) == 2


def test_img2datasets_shards_are_unpacked_and_what_failed_is_skipped(place, capsys):
    (place / "shards").mkdir()
    with tarfile.open(place / "shards" / "00000.tar", "w") as tar:
        for index, text in enumerate(FIRST.values()):
            add(tar, f"{index:09}.png", photo(index))
            add(tar, f"{index:09}.txt", text.encode())
        add(tar, "000000099.json", b"{}")
    assert prepare(place, "shards", images=None) == 1
    assert "--skip-bad" in capsys.readouterr().err
    assert prepare(place, "shards", images=None, more=["--skip-bad"]) == 0
    assert sorted(captions(place).values()) == sorted((text,) for text in FIRST.values())


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def arrow_table(names: list[str]):
    pa = pytest.importorskip("pyarrow")
    images = [{"bytes": photo(NAMES.index(name)), "path": name} for name in names]
    return pa.table({"image": images, "caption": [list(BOTH[name]) for name in names]})


def test_parquet_brings_its_images_and_its_splits(place):
    parquet = pytest.importorskip("pyarrow.parquet")
    (place / "hub" / "data").mkdir(parents=True)
    for split, names in (("train", NAMES[:4]), ("validation", NAMES[4:])):
        path = place / "hub" / "data" / f"{split}-00000-of-00001.parquet"
        parquet.write_table(arrow_table(names), path)
    assert prepare(place, "hub", images=None) == 0
    assert captions(place) == BOTH
    assert [e.image for e in read_split(place / "data", "dev").examples] == NAMES[4:]


def test_rows_that_repeat_an_image_are_one_and_names_that_repeat_are_two(place):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (place / "hub").mkdir()
    for split, start in (("train", 0), ("validation", 3)):
        rows = [(index, text) for index in range(start, start + 3) for text in ("A dog", "A cat")]
        images = [{"bytes": photo(n), "path": f"{n - start}.png"} for n, _ in rows]
        content = pa.table({"image": images, "caption": [text for _, text in rows]})
        parquet.write_table(content, place / "hub" / f"{split}.parquet")
    assert prepare(place, "hub", images=None) == 0
    assert list(captions(place).values()) == [("A dog", "A cat")] * 6
    assert {len(read_split(place / "data", name).examples) for name in ("train", "dev")} == {3}


def test_a_dataset_saved_to_disk_is_read_without_the_datasets_package(place):
    pa = pytest.importorskip("pyarrow")
    for split, names in (("train", NAMES[:4]), ("test", NAMES[4:])):
        folder = place / "saved" / split
        folder.mkdir(parents=True)
        rows = arrow_table(names)
        path = folder / "data-00000-of-00001.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
    assert prepare(place, "saved", images=None) == 0
    assert captions(place) == BOTH
    assert sorted(split_names(place / "data")) == ["dev", "test", "train"]


def test_a_damaged_parquet_file_is_told(place, capsys):
    pytest.importorskip("pyarrow")
    (place / "c.parquet").write_bytes(b"PAR1 and no more")
    assert prepare(place, "c.parquet") == 1
    assert "c.parquet cannot be read" in capsys.readouterr().err


def test_a_missing_extra_is_named(place, capsys, monkeypatch):
    (place / "c.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr("trainer.importing.arrow_formats.find_spec", {}.get)
    assert prepare(place, "c.parquet") == 1
    assert "pip install 'caption-service[tables]'" in capsys.readouterr().err


@pytest.mark.parametrize("column", ["split", "Subset"])
def test_splits_in_any_spelling_are_ours(place, column):
    splits = ["Train", "TRAINING", "train2014", "Val", " validation ", "test"]
    pairs = [(name, FIRST[name], split) for name, split in zip(NAMES, splits, strict=True)]
    (place / "c.csv").write_text(table(header=("image", "caption", column), pairs=pairs))
    assert prepare(place, "c.csv") == 0
    sizes = {name: len(read_split(place / "data", name).examples) for name in ("train", "dev")}
    assert sizes == {"train": 3, "dev": 2}


def test_splits_without_dev_get_one_of_train_aloud(place, capsys):
    pairs = [(name, FIRST[name], "test" if n < 2 else "train") for n, name in enumerate(NAMES)]
    (place / "c.csv").write_text(table(header=("image", "caption", "split"), pairs=pairs))
    assert prepare(place, "c.csv", more=["--dev-share", "0.25"]) == 0
    assert len(read_split(place / "data", "dev").examples) == 1
    assert len(read_split(place / "data", "train").examples) == 3
    assert "dev by chance from train" in capsys.readouterr().out


def test_splits_without_train_are_refused(place, capsys):
    pairs = [(name, FIRST[name], "test") for name in NAMES]
    (place / "c.csv").write_text(table(header=("image", "caption", "split"), pairs=pairs))
    assert prepare(place, "c.csv") == 1
    assert "none to train with" in capsys.readouterr().err
