"""The official layout is read whole or refused; a message names the file, the line or the image."""

import re
from pathlib import Path

import pytest

from trainer.data.flickr8k import check_counts, read_split
from trainer.errors import DataError

SHARED = Path(__file__).parents[4] / "shared" / "flickr8k"


def lay_out(directory: Path, *, folder: str = "Flicker8k_Dataset", **splits: list[str]) -> Path:
    """Write images, two captions for each, and a list per split."""
    images = directory / folder
    images.mkdir(parents=True)
    names = sorted({name for listed in splits.values() for name in listed})
    for name in names:
        (images / name).write_bytes(f"pixels of {name}".encode())
    lines = [f"{name}#{n}\tA dog number {n} .\n" for name in names for n in range(2)]
    (directory / "Flickr8k.token.txt").write_text("".join(lines))
    for split, listed in splits.items():
        (directory / f"Flickr_8k.{split}Images.txt").write_text("\n".join(listed) + "\n")
    return directory


@pytest.fixture
def directory(tmp_path):
    return lay_out(tmp_path / "data", train=["b.jpg", "a.jpg"], dev=["c.jpg"])


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def refused(directory: Path, *says: str, split: str = "train") -> None:
    with pytest.raises(DataError) as caught:
        read_split(directory, split)
    for words in says:
        assert words in str(caught.value)


def test_a_split_keeps_the_order_of_its_list(directory):
    split = read_split(directory, "train")
    assert split.name == "train"
    assert [example.image for example in split.examples] == ["b.jpg", "a.jpg"]


def test_an_example_has_its_file_and_its_captions_in_order(directory):
    token = directory / "Flickr8k.token.txt"
    token.write_text("".join(reversed(token.read_text().splitlines(keepends=True))))
    example = read_split(directory, "train").examples[0]
    assert example.path.read_bytes() == b"pixels of b.jpg"
    assert example.captions == ("A dog number 0 .", "A dog number 1 .")


@pytest.mark.parametrize("folder", ["Flicker8k_Dataset", "Flickr8k_Dataset"])
def test_both_spellings_of_the_image_folder_are_read(tmp_path, folder):
    lay_out(tmp_path, folder=folder, train=["a.jpg"])
    assert read_split(tmp_path, "train").examples[0].path == tmp_path / folder / "a.jpg"


def test_an_image_folder_of_another_name_is_read_when_named(tmp_path):
    lay_out(tmp_path, folder="photos", train=["a.jpg"])
    assert len(read_split(tmp_path, "train", images="photos").examples) == 1


def test_any_split_name_is_read_and_may_be_part_of_an_official_one(tmp_path):
    lay_out(tmp_path, train=["a.jpg", "b.jpg"], tiny=["a.jpg"])
    assert [example.image for example in read_split(tmp_path, "tiny").examples] == ["a.jpg"]


def test_blank_lines_carriage_returns_and_a_byte_order_mark_do_no_harm(directory):
    token = directory / "Flickr8k.token.txt"
    before = read_split(directory, "train")
    token.write_bytes(b"\xef\xbb\xbf" + token.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert read_split(directory, "train") == before


def test_captions_of_images_outside_the_lists_are_no_error(directory):
    append(directory / "Flickr8k.token.txt", "2258277193_586949ec62.jpg.1#0\tA subway .\n")
    assert len(read_split(directory, "train").examples) == 2


def test_a_missing_list_names_the_splits_there_are(directory):
    refused(directory, "Flickr_8k.testImages.txt", "dev, train", split="test")


def test_a_missing_token_file_is_refused(directory):
    (directory / "Flickr8k.token.txt").unlink()
    refused(directory, "Flickr8k.token.txt", "missing")


def test_a_missing_image_folder_is_refused(directory):
    (directory / "Flicker8k_Dataset").rename(directory / "photos")
    refused(directory, "Flicker8k_Dataset or Flickr8k_Dataset")


def test_a_listed_image_without_file_is_refused(directory):
    (directory / "Flicker8k_Dataset" / "a.jpg").unlink()
    refused(directory, "Flickr_8k.trainImages.txt", "file", "a.jpg")


def test_a_listed_image_without_caption_is_refused(directory):
    token = directory / "Flickr8k.token.txt"
    token.write_text(re.sub(r"a\.jpg.*\n", "", token.read_text()))
    refused(directory, "Flickr_8k.trainImages.txt", "caption", "a.jpg")


@pytest.mark.parametrize(
    "line",
    [
        "a.jpg A dog .",
        "a.jpg\tA dog .",
        "a.jpg#x\tA dog .",
        "a.jpg#2\t ",
        "a.jpg#2\tA dog .b.jpg#2\tA cat .",
        "photos/a.jpg#2\tA dog .",
    ],
)
def test_a_malformed_caption_line_is_refused_with_its_number(directory, line):
    append(directory / "Flickr8k.token.txt", line + "\n")
    refused(directory, "Flickr8k.token.txt line 7", "<TAB>")


def test_a_repeated_caption_key_is_refused_with_its_line(directory):
    append(directory / "Flickr8k.token.txt", "a.jpg#1\tAnother dog .\n")
    refused(directory, "line 7", "a.jpg#1")


def test_a_repeated_image_is_refused_with_its_line(directory):
    append(directory / "Flickr_8k.trainImages.txt", "b.jpg\n")
    refused(directory, "line 3", "b.jpg", "twice")


def test_a_list_line_that_is_a_path_is_refused(directory):
    append(directory / "Flickr_8k.trainImages.txt", "../a.jpg\n")
    refused(directory, "line 3", "one image file name")


def test_an_empty_list_is_refused(directory):
    (directory / "Flickr_8k.trainImages.txt").write_text("\n")
    refused(directory, "Flickr_8k.trainImages.txt", "empty")


def test_a_file_that_is_not_utf8_is_refused(directory):
    (directory / "Flickr8k.token.txt").write_bytes(b"a.jpg#0\tA caf\xe9 .\n")
    refused(directory, "UTF-8", "byte 13")


@pytest.mark.parametrize("split", ["train", "dev"])
def test_an_image_in_two_official_splits_is_refused_from_either_side(directory, split):
    append(directory / "Flickr_8k.devImages.txt", "a.jpg\n")
    refused(directory, "share a.jpg", split=split)


def test_the_damaged_token_file_that_circulates_is_refused(directory):
    extra = "".join(f"{n}.jpg#0\tA dog .\n" for n in range(8195 - 3))
    append(directory / "Flickr8k.token.txt", extra)
    refused(directory, "8092", "8195", "official")


def test_the_damaged_list_that_circulates_is_refused_beside_a_whole_token_file(directory):
    names = [f"{n}.jpg" for n in range(8092 - 3)]
    append(directory / "Flickr8k.token.txt", "".join(f"{name}#0\tA dog .\n" for name in names))
    (directory / "Flickr_8k.testImages.txt").write_text("\n".join(names[:1013]))
    refused(directory, "1013", "official", split="test")


def test_a_subset_is_no_error_and_its_sizes_are_findings(directory):
    findings = check_counts(directory)
    assert any("3 images" in finding for finding in findings)
    assert any("train lists 2" in finding and "6000" in finding for finding in findings)
    assert any("test has no list" in finding for finding in findings)
    assert any("5 captions" in finding and "c.jpg" in finding for finding in findings)


def test_check_counts_refuses_what_read_split_refuses(directory):
    (directory / "Flicker8k_Dataset" / "c.jpg").unlink()
    with pytest.raises(DataError, match=r"c\.jpg"):
        check_counts(directory)


def test_check_counts_refuses_a_directory_without_lists(tmp_path):
    with pytest.raises(DataError, match="Flickr_8k"):
        check_counts(tmp_path)


def test_the_hash_is_of_the_data_and_not_of_the_place(directory, tmp_path):
    elsewhere = lay_out(tmp_path / "copy", folder="Flickr8k_Dataset", train=["b.jpg", "a.jpg"])
    assert read_split(directory, "train").sha256 == read_split(elsewhere, "train").sha256


@pytest.mark.parametrize("change", ["pixels", "caption", "order"])
def test_the_hash_sees_every_change(directory, change):
    before = read_split(directory, "train").sha256
    if change == "pixels":
        (directory / "Flicker8k_Dataset" / "a.jpg").write_bytes(b"pixels of A.jpg")
    elif change == "caption":
        append(directory / "Flickr8k.token.txt", "a.jpg#7\tOne more .\n")
    else:
        (directory / "Flickr_8k.trainImages.txt").write_text("a.jpg\nb.jpg\n")
    assert read_split(directory, "train").sha256 != before


@pytest.mark.skipif(not SHARED.is_dir(), reason="Flickr8k is not here")
def test_the_real_lists_have_their_official_sizes():
    assert len(read_split(SHARED, "train").examples) == 6000
    assert len(read_split(SHARED, "dev").examples) == 1000
    assert not [finding for finding in check_counts(SHARED) if "lists" in finding]
