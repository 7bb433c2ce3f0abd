"""Clips -> frames: damaged ones, and those that name other files."""

import random

import av
import pytest

from app.captioner.errors import ImageError
from app.clips import videos
from app.clips.clip_program import PROGRAM
from app.clips.processes import ClipProcesses
from app.clips.reading import Still, frames
from app.clips.sampling import End, Frame, Sampling
from support.clips import BLUE, GREEN, RED, animation, halves, video

PICTURES = [halves(RED, BLUE)] * 6 + [halves(BLUE, GREEN)] * 6
HOW = Sampling(
    fps=10,
    max_frames=50,
    max_s=60,
    max_pixels=1_000_000,
    max_pixels_per_s=10**9,
    size_px=16,
    fit="squeeze",
    resampling="bilinear",
)
CLIPS = {
    "mp4": video(PICTURES, movflags="faststart"),
    "hevc": video(PICTURES, codec="libx265"),
    "webm": video(PICTURES, kind="webm", codec="libvpx"),
    "mov": video(PICTURES, kind="mov", codec="mpeg4", sound=True),
    "gif": animation(PICTURES[4:8], "GIF"),
    "apng": animation(PICTURES[4:8], "PNG"),
    "webp": animation(PICTURES[4:8], "WEBP"),
}
TEXTS = {
    "the clip is damaged or incomplete",
    "the clip has more pixels than this service accepts",
    "the clip is longer than 60 s: send a part of it",
    "the file has no pictures: send a clip with a video track",
    "the file has sound and no pictures: send a clip with a video track",
    "the clip has more than 1000000000 pixels a second: make it smaller",
    "decoding the clip takes more memory than it may",
    "decoding the clip takes longer than it may",
    "this WebP is damaged or incomplete",
    "the image is damaged or incomplete",
    f"the video is in a code that is not read: save it as {videos._NAMES}",
}


class News:
    def __init__(self):
        self.reasons = []

    def ended(self, reason):
        self.reasons.append(reason)

    def absent(self, error):
        raise AssertionError(error)


@pytest.fixture(scope="module")
def processes():
    made = ClipProcesses(1, budget_s=5, max_bytes=2**20, max_pixels=10**6, watcher=News())
    yield made
    made.close()


def read(processes, clip, how=HOW):
    """Read a clip in a process, to its end; give its frames and that."""
    reader = processes.read(clip, how)
    found = []
    try:
        while not isinstance(each := reader.next(), End):
            found.append(each)
    finally:
        reader.close()
    return found, each


def damaged(clip, rolls):
    """Cut a clip off, or change some of its bytes, most of them near its beginning."""
    if rolls.random() < 0.3:
        return clip[: rolls.randrange(len(clip))]
    changed = bytearray(clip)
    for _ in range(rolls.choice([1, 2, 8, 40])):
        most = len(changed) if rolls.random() < 0.5 else min(300, len(changed))
        changed[rolls.randrange(most)] = rolls.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("kind", CLIPS)
def test_a_process_gives_what_is_read_here(processes, kind):
    found, end = read(processes, CLIPS[kind])
    *here, end_here = frames(CLIPS[kind], HOW)
    assert end == end_here
    assert [each.time_s for each in found] == [each.time_s for each in here]
    assert all((a.pixels == b.pixels).all() for a, b in zip(found, here, strict=True))


@pytest.mark.parametrize("kind", CLIPS)
def test_damaged_clips_give_frames_or_a_fixed_text(processes, kind):
    """Whatever the bytes are, the process answers within its limits, or is replaced."""
    rolls = random.Random(kind)
    outcomes = {"frames": 0, "refused": 0}
    for _ in range(60):
        clip = damaged(CLIPS[kind], rolls)
        refusal = None
        try:
            found, end = read(processes, clip)
        except Still:
            continue
        except ImageError as error:
            refusal = str(error)
        if refusal is not None:
            assert refusal in TEXTS or "expected" in refusal
            outcomes["refused"] += 1
            continue
        outcomes["frames"] += 1
        assert 0 < len(found) <= HOW.max_frames
        assert all(isinstance(each, Frame) and each.pixels.shape == (16, 16, 3) for each in found)
        times = [each.time_s for each in found]
        assert times == sorted(times)
        assert 0 <= times[0] <= times[-1] <= HOW.max_s
        assert end.duration_s >= times[-1]
    assert min(outcomes.values()) > 3


def test_a_process_is_used_again_and_replaced_when_its_clip_is_left(processes):
    read(processes, CLIPS["gif"])
    (before,) = (each._child.pid for each in processes._idle)
    read(processes, CLIPS["mp4"])
    assert [each._child.pid for each in processes._idle] == [before]
    long = processes.read(video(PICTURES * 20), HOW)
    long.next()
    long.close()
    read(processes, CLIPS["mp4"])
    assert [each._child.pid for each in processes._idle] != [before]
    assert processes._watcher.reasons[-1:] == ["abandoned"]


def test_a_clip_over_its_budget_ends_its_process():
    short = ClipProcesses(1, budget_s=0.05, max_bytes=10**6, max_pixels=10**6, watcher=News())
    try:
        with pytest.raises(ImageError, match="longer than it may"):
            read(short, video(PICTURES * 40))
        assert short._watcher.reasons == ["over_budget"]
    finally:
        short.close()


def test_the_program_is_a_module():
    assert __import__(PROGRAM, fromlist=["main"]).main


# What a file may name


def elsewhere(clip, place):
    """Let the track of an MP4 say that its pictures are in another file, and have none itself.

    Reference: QuickTime File Format, "Data reference atoms": an alias, and in it a path
    """
    box = clip.index(b"url ", clip.index(b"dref"))
    path = str(place).encode() + b"\0" * (len(str(place)) % 2)
    alias = bytes(150) + b"\0\2" + len(path).to_bytes(2, "big") + path + b"\xff\xff\0\0"
    entry = (12 + len(alias)).to_bytes(4, "big") + b"alis" + bytes(4) + alias
    grown = len(entry) - 12
    found = bytearray(clip)
    found[box - 4 : box + 8] = entry
    for name in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        at = clip.index(name) - 4
        size = int.from_bytes(clip[at : at + 4], "big") + grown
        found[at : at + 4] = size.to_bytes(4, "big")
    media = found.index(b"mdat")
    length = int.from_bytes(found[media - 4 : media], "big") - 8
    found[media + 4 : media + 4 + length] = bytes(length)
    return bytes(found)


def test_a_file_that_an_mp4_names_is_not_opened(tmp_path):
    """The pictures that it names are there: FFmpeg sees them, were it let."""
    clip = video(PICTURES)
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(clip)
    naming = tmp_path / "naming.mp4"
    naming.write_bytes(elsewhere(clip, secret))
    let = {"enable_drefs": "1", "use_absolute_path": "1"}
    with av.open(str(naming), format="mov", options=let) as opened:
        assert len(list(opened.decode(video=0))) == len(PICTURES)
    with pytest.raises(ImageError, match="damaged"):
        list(frames(naming.read_bytes(), HOW))


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{}'\n",
        '<?xml version="1.0"?><MPD><Period><BaseURL>{}</BaseURL></Period></MPD>',
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n# {}",
    ],
)
def test_a_playlist_opens_nothing(tmp_path, playlist):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(video(PICTURES))
    with pytest.raises(ImageError, match="expected"):
        list(frames(playlist.format(secret).encode(), HOW))
    with pytest.raises(ImageError, match="damaged"):  # whichever demuxer is told to read it
        list(videos.frames(playlist.format(secret).encode(), "mov", HOW))


def test_ffmpeg_would_open_what_a_playlist_names_were_it_let(tmp_path):
    """What the tests above rest on: these files do lead FFmpeg to others."""
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(video(PICTURES))
    playlist = tmp_path / "list.ffconcat"
    playlist.write_text(f"ffconcat version 1.0\nfile '{secret}'\n")
    with av.open(str(playlist), format="concat", options={"safe": "0"}) as opened:
        assert next(opened.decode(video=0)).width == 64
    with pytest.raises((av.FFmpegError, ValueError)):
        av.open(str(playlist), format="concat", options={**videos._options("mov"), "safe": "0"})
