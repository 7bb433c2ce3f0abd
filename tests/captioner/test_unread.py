"""Uploads that a captioner reads itself, as part of a batch."""

import io

import pytest
from PIL import Image

from app.captioner.decode import is_quick
from app.captioner.errors import ImageTooLarge, UndecodableImage
from app.captioner.image import Unread
from app.captioner.pipeline import Captioner
from support.tiny import photo

MAX_PIXELS = 10_000
MOST = 4  # as `apart` has
JPEG = photo(kind="JPEG")


@pytest.fixture(scope="module")
def here(directory):
    return Captioner.load(directory, cores=1)


def jpeg(width=64, height=48, mode="RGB", **options):
    file = io.BytesIO()
    Image.new(mode, (width, height), 80).save(file, "JPEG", **options)
    return file.getvalue()


def texts(answers):
    return [[caption.text for caption in candidates] for candidates in answers]


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


@pytest.mark.parametrize("alone", [True, False])
def test_what_a_batch_reads_gets_the_captions_of_what_was_read_before(here, apart, alone):
    uploads = [photo(seed, kind="JPEG") for seed in range(MOST)]
    squares = [here.read(data, max_pixels=MAX_PIXELS) for data in uploads]
    unread = [apart.unread(data, max_pixels=MAX_PIXELS) for data in uploads]
    assert all(isinstance(each, Unread) for each in unread)
    said = texts(here.caption(squares))
    mixed = [squares[0], *unread[1:3], squares[3]]
    assert texts(apart.caption(unread, alone=alone)) == said
    assert texts(apart.caption(mixed, alone=alone)) == said
    assert texts(here.caption(unread)) == said


@pytest.mark.parametrize("alone", [True, False])
def test_what_is_at_fault_is_refused_and_the_others_are_captioned(here, apart, alone):
    refused = {}
    large, cut = photo(width=200, kind="JPEG"), JPEG[:-400]
    batch = [apart.unread(data, max_pixels=MAX_PIXELS) for data in (large, JPEG, cut)]
    answers = apart.caption(batch, on_refused=refused.__setitem__, alone=alone)
    assert {n: type(error) for n, error in refused.items()} == {
        0: ImageTooLarge,
        2: UndecodableImage,
    }
    assert [bool(candidates) for candidates in answers] == [False, True, False]
    assert texts(answers)[1] == texts(here.caption([here.read(JPEG, max_pixels=MAX_PIXELS)]))[0]


@pytest.mark.parametrize("alone", [True, False])
def test_a_batch_of_nothing_but_faults_leaves_the_network_alone(apart, alone):
    refused, stages = {}, []
    cut = apart.unread(JPEG[:-400], max_pixels=MAX_PIXELS)
    answers = apart.caption(
        [cut, cut],
        on_stage=lambda *stage: stages.append(stage[0]),
        on_refused=refused.__setitem__,
        alone=alone,
    )
    assert (answers, sorted(refused)) == ([(), ()], [0, 1])
    assert stages == ["decode", "encode", "search"]


def test_unless_somebody_asks_the_first_fault_is_raised(here):
    with pytest.raises(UndecodableImage):
        here.caption([Unread(JPEG, MAX_PIXELS), Unread(JPEG[:-400], MAX_PIXELS)])


def test_an_upload_whose_caller_left_is_not_even_read(here):
    refused = {}
    batch = [Unread(JPEG[:-400], MAX_PIXELS), Unread(JPEG, MAX_PIXELS)]
    answers = here.caption(batch, wanted=lambda n: n == 1, on_refused=refused.__setitem__)
    assert [bool(candidates) for candidates in answers] == [False, True]
    assert refused == {}


def test_only_what_has_cores_of_a_cpu_reads_uploads_itself(here, directory):
    assert here.unread(JPEG, max_pixels=MAX_PIXELS) == Unread(JPEG, MAX_PIXELS)
    assert here.unread(photo(), max_pixels=MAX_PIXELS) is None
    assert Captioner.load(directory).unread(JPEG, max_pixels=MAX_PIXELS) is None
