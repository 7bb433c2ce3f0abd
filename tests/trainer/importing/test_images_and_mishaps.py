"""`prepare --from`: images of other formats and names, and one bad entry among many."""

import csv
import io
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.captioner.image.decode import decode
from support.tiny import photo
from trainer.__main__ import main
from trainer.data.flickr8k import read_split, split_names

COUNT = 6


@pytest.fixture
def place(tmp_path):
    (tmp_path / "photos").mkdir()
    return tmp_path


def picture(index: int) -> Image.Image:
    return Image.open(io.BytesIO(photo(index))).convert("RGB")


def write_photos(place: Path, suffix: str = ".png", **options) -> list[str]:
    names = [f"p{index}{suffix}" for index in range(COUNT)]
    for index, name in enumerate(names):
        picture(index).save(place / "photos" / name, **options)
    return names


def write_csv(place: Path, names: list[str], *, more: str = "") -> None:
    with (place / "c.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        writer.writerows((name, f"A dog {number}") for number, name in enumerate(names))
        file.write(more)


def prepare(place: Path, *more: str) -> int:
    folders = ["--images", str(place / "photos"), "--out", str(place / "data")]
    return main(["prepare", "--from", str(place / "c.csv"), *folders, *more])


def images(place: Path) -> dict[str, Path]:
    return {
        example.image: example.path
        for name in split_names(place / "data")
        for example in read_split(place / "data", name).examples
    }


@pytest.mark.parametrize("suffix", [".tif", ".bmp", ".gif", ".ppm", ".tga"])
def test_what_pillow_opens_is_converted_without_loss_and_said(place, capsys, suffix):
    write_csv(place, write_photos(place, suffix))
    assert prepare(place) == 0
    assert f"{COUNT} images are" in capsys.readouterr().out
    found = images(place)
    assert sorted(found) == [f"p{index}.png" for index in range(COUNT)]
    with Image.open(place / "photos" / f"p0{suffix}") as original:
        expected = np.asarray(original.convert("RGB"))
    pixels = decode(found["p0.png"].read_bytes(), at_least_px=4096, max_pixels=10**6)
    assert np.array_equal(pixels, expected)


def test_heic_of_a_phone_is_converted(place):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    write_csv(place, write_photos(place, ".heic", quality=90))
    assert prepare(place) == 0
    assert sorted(images(place)) == [f"p{index}.png" for index in range(COUNT)]


def test_heic_without_its_reader_names_the_extra(place, capsys, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    write_csv(place, write_photos(place, ".heic"))
    monkeypatch.setattr("trainer.importing.images.find_spec", {}.get)
    assert prepare(place) == 1
    assert "pip install 'caption-service[heif]'" in capsys.readouterr().err


def test_a_program_that_draws_is_not_run(place, capsys):
    names = write_photos(place)
    picture(1).save(place / "photos" / "drawn.eps")
    write_csv(place, [*names, "drawn.eps"])
    assert prepare(place) == 1
    assert "expected an image that Pillow can open" in capsys.readouterr().err
    assert prepare(place, "--skip-bad") == 0
    assert set(images(place)) == set(names)


def test_sixteen_bits_are_scaled_and_not_cut_off(place):
    names = write_photos(place)[1:]
    grey = np.linspace(0, 65_535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(grey).save(place / "photos" / "deep.tif")
    write_csv(place, [*names, "deep.tif"])
    assert prepare(place) == 0
    with Image.open(images(place)["deep.png"]) as image:
        pixels = np.asarray(image)
    assert pixels.max() == 255
    assert 120 < np.median(pixels) < 136


def test_a_turned_photo_is_upright_after_conversion(place):
    names = write_photos(place)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40), "red").save(place / "photos" / "turned.tif", exif=exif)
    write_csv(place, [*names, "turned.tif"])
    assert prepare(place) == 0
    with Image.open(images(place)["turned.png"]) as image:
        assert image.size == (40, 80)


def test_a_copy_never_takes_the_name_of_another_image(place):
    names = write_photos(place)
    picture(9).save(place / "photos" / "p0.bmp")
    write_csv(place, [*names, "p0.bmp"])
    assert prepare(place) == 0
    assert set(images(place)) == {*names, "p0_bmp.png"}


def test_content_counts_and_not_the_suffix(place):
    names = write_photos(place)
    (place / "photos" / "p0.png").rename(place / "photos" / "p0.jfif")
    write_csv(place, ["p0.jfif", *names[1:]])
    assert prepare(place) == 0
    assert set(images(place)) == set(names)


SPELLINGS = {
    "backslashes": "photos\\{name}",
    "windows drive": "C:\\me\\photos\\{name}",
    "absolute": "{place}/photos/{name}",
    "another machine": "/home/me/photos/{name}",
    "address": "https://host/photos/{name}",
    "dots": "./{name}",
    "above": "../photos/{name}",
    "no suffix": "{stem}",
    "another suffix": "{stem}.jpg",
    "capitals": "{stem}.PNG",
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_names_are_matched_as_other_programs_write_them(place, capsys, spelling):
    names = write_photos(place)
    stems = [name.removesuffix(".png") for name in names]
    spelled = [spelling.format(place=place, name=f"{stem}.png", stem=stem) for stem in stems]
    write_csv(place, spelled)
    assert prepare(place) == 0
    assert set(images(place)) == set(names)
    assert f"{COUNT} images were found" in capsys.readouterr().out


def test_images_in_folders_below_are_found_by_their_bare_names(place):
    names = write_photos(place)
    (place / "photos" / "train2014").mkdir()
    for name in names:
        (place / "photos" / name).rename(place / "photos" / "train2014" / name)
    write_csv(place, names)
    assert prepare(place) == 0
    assert set(images(place)) == {f"train2014_{name}" for name in names}


def test_a_number_finds_the_file_that_ends_in_it(place):
    names = [f"COCO_val2014_{index:012}.png" for index in range(COUNT)]
    for index, name in enumerate(names):
        picture(index).save(place / "photos" / name)
    write_csv(place, [str(index) for index in range(COUNT)])
    assert prepare(place) == 0
    assert set(images(place)) == set(names)


def test_a_name_that_may_mean_two_files_is_explained(place, capsys):
    names = write_photos(place)
    for folder in ("a", "b"):
        (place / "photos" / folder).mkdir()
        picture(7).save(place / "photos" / folder / "x.png")
    write_csv(place, [*names, "x.png"])
    assert prepare(place) == 1
    assert "a name may mean several images" in capsys.readouterr().err


def test_signs_that_a_list_cannot_hold_become_lines(place):
    names = write_photos(place)
    (place / "photos" / "p0.png").rename(place / "photos" / "beach #1: me.png")
    write_csv(place, ["beach #1: me.png", *names[1:]])
    assert prepare(place) == 0
    assert "beach _1_ me.png" in images(place)


def test_composed_and_decomposed_letters_are_the_same_name(place):
    names = write_photos(place)
    apart = unicodedata.normalize("NFD", "Käfer.png")
    (place / "photos" / "p0.png").rename(place / "photos" / apart)
    write_csv(place, ["Käfer.png", *names[1:]])
    assert prepare(place) == 0
    assert "Käfer.png" in images(place)


BAD = {
    "missing image": "none.png,A dog\n",
    "empty caption": "p0.png,\n",
    "pandas' nan": "p0.png,nan\n",
    "too many commas": "p0.png,A dog, wet\n",
    "unclosed quote": 'p0.png,"A dog\n',
    "quote inside": 'p0.png,"A "big" dog"\n',
    "broken image": "broken.png,A dog\n",
    "no image": "notes.txt,A dog\n",
}


@pytest.mark.parametrize("bad", BAD)
def test_one_bad_entry_is_refused_in_a_line_and_skipped_when_asked(place, capsys, bad):
    names = write_photos(place)
    (place / "photos" / "broken.png").write_bytes(photo(1)[:40])
    (place / "photos" / "notes.txt").write_text("remember")
    write_csv(place, names, more=BAD[bad])
    assert prepare(place) == 1
    refusal = capsys.readouterr().err.split("\r")[-1]
    assert f"1 of {COUNT + 1} entries cannot be used" in refusal
    assert f"c.csv line {COUNT + 2}" in refusal
    assert "--skip-bad" in refusal
    assert len(refusal.strip().splitlines()) == 1
    assert not (place / "data").exists()
    assert prepare(place, "--skip-bad") == 0
    assert set(images(place)) == set(names)
    with (place / "data" / "skipped.csv").open(newline="") as file:
        (skipped,) = csv.DictReader(file)
    assert skipped["place"].endswith(f"c.csv line {COUNT + 2}")
    assert skipped["fault"]


def test_an_unclosed_quote_does_not_hide_the_faults_behind_it(place, capsys):
    names = write_photos(place)
    bad = 'p0.png,"A dog\nnone.png,A cat\np1.png,a,b,c\np1.png,A cat again\n'
    write_csv(place, names, more=bad)
    assert prepare(place) == 1
    refusal = capsys.readouterr().err
    for number in (8, 9, 10):
        assert f"line {number}" in refusal
    assert prepare(place, "--skip-bad") == 0
    assert (place / "data" / "skipped.csv").read_text().count("\n") == 4
    tokens = (place / "data" / "Flickr8k.token.txt").read_text()
    assert "A cat again" in tokens


def test_thousands_of_bad_entries_are_told_in_one_line(place, capsys):
    write_csv(place, write_photos(place), more="none.png,A dog\n" * 2000)
    assert prepare(place) == 1
    refusal = capsys.readouterr().err
    assert "2000 of 2006 entries" in refusal
    assert len(refusal) < 1500
    assert len(refusal.strip().splitlines()) == 1


def test_where_nothing_can_be_used_nothing_is_skipped(place, capsys):
    write_photos(place)
    write_csv(place, ["x1.png", "x2.png"])
    assert prepare(place, "--skip-bad") == 1
    said = capsys.readouterr().err
    assert "none of 2 images is in" in said
    assert "holds 6 images, first 'p0.png'" in said


def test_folders_above_the_new_directory_are_made(place):
    write_csv(place, write_photos(place))
    folders = ["--images", str(place / "photos"), "--out", str(place / "new" / "er" / "data")]
    assert main(["prepare", "--from", str(place / "c.csv"), *folders]) == 0
    assert sorted(path.name for path in (place / "new" / "er").iterdir()) == ["data"]
