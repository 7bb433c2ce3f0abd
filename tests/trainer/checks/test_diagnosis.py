"""The doctor names everything that is wrong at once; errors give 1, notes give 0."""

import pytest

from support.tiny import data_directory, photo
from trainer.__main__ import main


@pytest.fixture
def directory(tmp_path):
    return data_directory(tmp_path / "data", train=4, dev=2)


@pytest.fixture(autouse=True)
def different_pictures(directory):
    for index, path in enumerate(sorted((directory / "Flicker8k_Dataset").iterdir())):
        path.write_bytes(photo(index))


def doctor(directory, capsys, status: int) -> list[str]:
    assert main(["doctor", str(directory)]) == status
    return capsys.readouterr().out.splitlines()


def said(lines: list[str], severity: str, *words: str) -> bool:
    return any(line.startswith(severity) and all(word in line for word in words) for line in lines)


def add(directory, text: str, file: str = "Flickr8k.token.txt") -> None:
    with (directory / file).open("a") as lines:
        lines.write(text)


def test_a_small_directory_without_faults_has_notes_only(directory, capsys):
    lines = doctor(directory, capsys, 0)
    assert said(lines, "note", "train has 4 images", "add images")
    assert said(lines, "note", "dev has 2 images", "give dev more")
    assert said(lines, "note", "words in train", "vocabulary.min_count")
    assert lines[-1].endswith("data: 0 errors, 3 notes")


def test_all_faults_are_named_at_once(directory, capsys):
    images = directory / "Flicker8k_Dataset"
    (images / "train0.png").write_bytes(b"no image at all")
    (images / "train1.png").write_bytes(photo(1)[:-30])
    (images / "train2.png").unlink()
    add(directory, "train3.png\nlost.png\n../x.png\ndev1.png\n", "Flickr_8k.devImages.txt")
    add(directory, "train0.png#0\tAgain .\nno tab here\nnor here\ntrain3.png#7\t...\n")
    lines = doctor(directory, capsys, 1)
    assert said(lines, "error", "broken: 2 images", "train0.png (expected a JPEG", "save them")
    assert said(lines, "error", "train1.png (the image is damaged")
    assert said(lines, "error", "train lists 1 image without a file: train2.png", "restore")
    assert said(lines, "error", "dev lists 1 image without a caption: lost.png", "describe")
    assert said(lines, "error", "train and dev share 1 image: train3.png", "remove them")
    assert said(lines, "error", "devImages.txt line 5", "one image file name")
    assert said(lines, "error", "dev1.png stands there twice")
    assert said(lines, "error", "train0.png#0 stands there twice")
    assert said(lines, "error", "token.txt line 14")
    assert said(lines, "error", "token.txt line 15")
    assert said(lines, "error", "1 captions of train hold no word: of train3.png")
    severities = [line.split(":")[0] for line in lines[:-1]]
    assert severities == sorted(severities)


def test_one_picture_under_two_names_in_two_splits_is_an_error(directory, capsys):
    images = directory / "Flicker8k_Dataset"
    (images / "dev1.png").write_bytes((images / "train2.png").read_bytes())
    lines = doctor(directory, capsys, 1)
    assert said(lines, "error", "train and dev", "under two names: train2.png = dev1.png")


def test_one_picture_twice_in_a_split_is_a_note(directory, capsys):
    images = directory / "Flicker8k_Dataset"
    (images / "train1.png").write_bytes((images / "train2.png").read_bytes())
    lines = doctor(directory, capsys, 0)
    assert said(lines, "note", "train lists 1 image that another one equals: train1.png")


def test_a_list_of_another_name_may_be_a_part_of_train(directory, capsys):
    add(directory, "train0.png\n", "Flickr_8k.tinyImages.txt")
    doctor(directory, capsys, 0)


def test_a_missing_dev_list_is_an_error(directory, capsys):
    (directory / "Flickr_8k.devImages.txt").unlink()
    assert said(doctor(directory, capsys, 1), "error", "no Flickr_8k.devImages.txt")


def test_an_empty_directory_is_told_all_that_it_lacks(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    lines = doctor(tmp_path / "empty", capsys, 1)
    for lack in ("trainImages.txt", "devImages.txt", "Flickr8k.token.txt", "Flicker8k_Dataset"):
        assert said(lines, "error", lack)


def test_unused_files_and_captions_are_notes(directory, capsys):
    (directory / "Flicker8k_Dataset" / "more.png").write_bytes(photo(9))
    add(directory, "gone.png#0\tA dog .\n")
    lines = doctor(directory, capsys, 0)
    assert said(lines, "note", "1 image on no list: more.png")
    assert said(lines, "note", "captions of 1 image without file or list: gone.png")


def test_a_sentence_said_of_many_images_is_a_note(directory, capsys):
    add(directory, "".join(f"train{n}.png#9\tA nice photo!\n" for n in range(3)))
    lines = doctor(directory, capsys, 0)
    assert said(lines, "note", "1 captions stand under 3 images", "'a nice photo' under 3")


def test_long_captions_are_a_note(directory, capsys):
    add(directory, "train0.png#9\t" + "word " * 60 + "\n")
    lines = doctor(directory, capsys, 0)
    assert said(lines, "note", "1 of 9 captions of train are longer than 20", "60 (train0.png)")


def test_single_captions_are_a_note(directory, capsys):
    token = directory / "Flickr8k.token.txt"
    lines = token.read_text().splitlines(keepends=True)
    token.write_text("".join(line for line in lines if "#1" not in line))
    assert said(doctor(directory, capsys, 0), "note", "4 of 4 images of train with one caption")


def test_an_image_folder_of_another_name_is_read_when_named(directory, capsys):
    (directory / "Flicker8k_Dataset").rename(directory / "photos")
    assert main(["doctor", str(directory), "--images", "photos"]) == 0
    assert main(["doctor", str(directory)]) == 1
