"""Uploads that a captioner decodes itself, as part of a batch."""

import io

import pytest
from PIL import Image

from app.captioner.errors import ImageTooLarge, UndecodableImage
from app.captioner.image.decode import EncodedImage, is_quick
from support.tiny import photo

MAX_PIXELS = 10_000
JPEG = photo(kind="JPEG")


def jpeg(width=64, height=48, mode="RGB", **options):
    file = io.BytesIO()
    Image.new(mode, (width, height), 80).save(file, "JPEG", **options)
    return file.getvalue()


def texts(result):
    return [[caption.text for caption in candidates] for candidates in result.captions]


def encoded(*uploads):
    return [EncodedImage(data, MAX_PIXELS) for data in uploads]


@pytest.mark.parametrize(
    "data",
    [jpeg(), jpeg(mode="L"), jpeg(mode="CMYK"), jpeg(exif=b"Exif\0\0" + bytes(60_000)),
     jpeg(5000, 3200)],
    ids=["colour", "grey", "cmyk", "exif", "16 megapixels"],
)  # fmt: skip
def test_a_jpeg_in_one_scan_is_quick(data):
    assert is_quick(data)


@pytest.mark.parametrize(
    "data",
    [
        jpeg(progressive=True),
        jpeg(5000, 3201),
        photo(kind="PNG"),
        photo(kind="WEBP"),
        jpeg() + bytes(4 * 2**20),
        jpeg()[:2] + b"\xff\xe1\0\2" * 100 + jpeg()[2:],  # a hundred empty segments
        jpeg()[:40],
        b"\xff\xd8\xff",
        b"",
    ],
    ids=["progressive", "large", "png", "webp", "long", "crowded", "cut", "magic", "empty"],
)
def test_what_may_take_long_or_cannot_be_told_is_not_quick(data):
    assert not is_quick(data)


def test_a_second_frame_does_not_hide_a_progressive_one():
    sequential, progressive = jpeg(), jpeg(progressive=True)
    at, other = sequential.index(b"\xff\xc0"), progressive.index(b"\xff\xc2")
    frame = progressive[other : other + 19]
    for where in (at, at + 19):
        assert not is_quick(sequential[:where] + frame + sequential[where:])


class Counted(bytes):
    """Counts how often it is looked into."""

    looks = 0

    def __getitem__(self, where):
        self.looks += 1
        return super().__getitem__(where)


@pytest.mark.parametrize(
    "junk",
    [b"\xff", b"\xff\xd0", b"\xff\0", b"\xff\xe1\0\2", b"\xff\xe1\0\0", b"x"],
    ids=["fill", "restarts", "stuffing", "segments", "no length", "text"],
)
def test_a_look_is_short_whatever_the_bytes_are(junk):
    data = Counted(JPEG[:2] + junk * (2**20 // len(junk)) + JPEG[2:])
    assert not is_quick(data)
    assert data.looks < 100


def test_what_a_batch_decodes_gets_the_captions_of_what_was_decoded_before(captioner):
    uploads = [photo(seed, kind="JPEG") for seed in range(4)]
    squares = [captioner.read(data, max_pixels=MAX_PIXELS) for data in uploads]
    here = [captioner.encoded(data, max_pixels=MAX_PIXELS) for data in uploads]
    assert here == encoded(*uploads)
    said = texts(captioner.caption(squares))
    assert texts(captioner.caption(here)) == said
    assert texts(captioner.caption([squares[0], *here[1:3], squares[3]])) == said


def test_decoding_is_a_part_of_the_work(captioner):
    stages = captioner.caption(encoded(JPEG)).stages
    assert [stage.name for stage in stages] == ["decode", "encode", "search"]
    assert stages[0].began_s < stages[0].ended_s <= stages[1].began_s


def test_what_is_at_fault_is_refused_and_the_others_are_captioned(captioner):
    large, cut = photo(width=200, kind="JPEG"), JPEG[: len(JPEG) // 3]
    found = captioner.caption(encoded(large, JPEG, cut))
    assert {n: type(error) for n, error in found.refused.items()} == {
        0: ImageTooLarge,
        2: UndecodableImage,
    }
    assert all(error.__traceback__ is None for error in found.refused.values())
    assert [bool(candidates) for candidates in found.captions] == [False, True, False]
    alone = captioner.caption([captioner.read(JPEG, max_pixels=MAX_PIXELS)])
    assert texts(found)[1] == texts(alone)[0]


def test_a_batch_of_nothing_but_faults_leaves_the_network_alone(captioner):
    found = captioner.caption(encoded(JPEG[: len(JPEG) // 3], JPEG[: len(JPEG) // 3]))
    assert found.captions == ((), ())
    assert sorted(found.refused) == [0, 1]
    assert [stage.name for stage in found.stages] == ["decode"]


def test_an_upload_whose_caller_left_is_not_even_decoded(captioner):
    found = captioner.caption(encoded(JPEG[: len(JPEG) // 3], JPEG), lambda n: n == 1)
    assert [bool(candidates) for candidates in found.captions] == [False, True]
    assert found.refused == {}


def test_callers_who_leave_are_known_by_their_place_among_what_is_refused_too(captioner):
    batch = encoded(JPEG[: len(JPEG) // 3], JPEG, photo(1, kind="JPEG"))
    asked = []

    def still_waiting(n):
        asked.append(n)
        return n != 1 or len(asked) <= 3  # all are decoded, then 1 leaves

    found = captioner.caption(batch, still_waiting)
    assert [bool(candidates) for candidates in found.captions] == [False, False, True]
    assert set(asked[3:]) == {1, 2}


def test_only_what_is_quick_is_decoded_in_a_batch_and_only_on_a_cpu(captioner, monkeypatch):
    assert captioner.encoded(JPEG, max_pixels=MAX_PIXELS) == EncodedImage(JPEG, MAX_PIXELS)
    assert captioner.encoded(photo(), max_pixels=MAX_PIXELS) is None
    monkeypatch.setattr(captioner.engine, "batches_cost_alike", True)  # as on a GPU
    assert captioner.encoded(JPEG, max_pixels=MAX_PIXELS) is None
