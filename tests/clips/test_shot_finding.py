"""Frames -> shots, and shots -> what is told of them."""

import numpy as np
import pytest

from app.captioner.captions import Candidates, Caption
from app.captioner.presentation import Presentation, told
from app.clips.described import DescribedShot, Merging, Summary, say_the_same
from app.clips.sampling import Frame
from app.clips.shots import Look, ShotFinder, distance, histogram
from app.clips.tracks import srt, vtt

SQUARE = np.zeros((4, 4, 3), np.uint8)
COLOURS = np.full(64, 1 / 64, np.float32)


def look(angle):
    """Give a frame of this angle, in degrees; 90 apart are as different as can be."""
    turn = np.radians(angle)
    return Look(np.array([np.cos(turn), np.sin(turn)], np.float32), COLOURS)


def shots(angles, threshold=0.2):
    """Give when shots begin and end in frames of these angles, two a second."""
    finder = ShotFinder(threshold)
    frames = [(Frame(n / 2, SQUARE), look(angle)) for n, angle in enumerate(angles)]
    found = [each for each in (finder.add(*pair) for pair in frames) if each]
    found += finder.end(len(angles) / 2)
    assert all(each.frames and each.keyframe in each.frames for each in found)
    return [(each.start_s, each.end_s) for each in found]


def test_a_cut_is_where_the_second_shot_begins():
    assert shots([0] * 6 + [90] * 6) == [(0, 3), (3, 6)]


def test_a_fade_is_one_boundary_in_its_middle():
    """No two frames that follow each other are far apart."""
    ((start, middle), (again, end)) = shots([0] * 6 + [40, 80, 120] + [160] * 6)
    assert (start, end) == (0, 7.5)
    assert middle == again
    assert 3 <= middle <= 4.5


def test_a_camera_that_moves_on_and_on_cuts_nothing():
    assert shots([3 * n for n in range(30)]) == [(0, 15)]


def test_a_flash_that_comes_back_is_no_shot_of_its_own():
    assert shots([0] * 6 + [90] + [0] * 6) == [(0, 6.5)]


def test_no_shot_is_shorter_than_a_second():
    found = shots([0, 90] * 10)
    assert all(end - start >= 1 for start, end in found)


def test_a_cut_right_before_the_end_is_found_if_a_second_is_left():
    assert shots([0] * 6 + [90] * 2) == [(0, 3), (3, 4)]
    assert shots([0] * 6 + [90]) == [(0, 3.5)]


def test_a_clip_without_frames_has_no_shot():
    assert shots([]) == []


def test_a_long_shot_keeps_few_frames_and_its_middle_is_among_them():
    finder = ShotFinder()
    for n in range(5000):
        assert finder.add(Frame(n / 2, SQUARE), look(0)) is None
    (shot,) = finder.end(2500.0)
    assert len(shot.frames) <= 16
    assert abs(shot.keyframe.time_s - 1250) < 2500 / 8


def test_frames_that_are_the_same_are_not_apart_and_others_are():
    red, blue = SQUARE.copy(), SQUARE.copy()
    red[..., 0], blue[..., 2] = 200, 200
    same = Look(np.ones(2, np.float32), histogram(red))
    other = Look(np.array([1, -1], np.float32), histogram(blue))
    assert distance(same, same) == pytest.approx(0, abs=1e-6)
    assert distance(same, other) == pytest.approx(1)


def described(text, start_s=0.0, end_s=1.0, confidence=0.8, least=None):
    candidates = Candidates([Caption(text, -1.0, -0.5, (), confidence)])
    how = Presentation(min_confidence=least)
    return DescribedShot(start_s, end_s, (start_s + end_s) / 2, told(candidates, how))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a dog runs on the grass", "the dog runs on grass", True),
        ("a dog runs on the grass", "a dog runs on the snow", False),
        ("A dog runs.", "a dog runs", True),
    ],
)
def test_captions_are_near_identical_or_not(one, other, same):
    assert say_the_same(one, other) is same


def test_of_neighbours_that_say_the_same_the_longer_speaks():
    merging = Merging()
    assert merging.add(described("a dog runs on the grass", 0, 1)) is None
    assert merging.add(described("the dog runs on the grass", 1, 5)) is None
    first = merging.add(described("a cat", 5, 6))
    assert (first.start_s, first.end_s, first.told.text) == (0, 5, "the dog runs on the grass")
    assert merging.end().told.text == "a cat"


def test_the_summary_weighs_time_by_confidence():
    summary = Summary()
    assert summary.text is None
    summary.add(described("a dog", 0, 4, confidence=0.2))
    summary.add(described("a cat", 4, 6, confidence=0.9))
    summary.add(described("a bird", 6, 60, confidence=0.1, least=0.5))  # withheld
    assert summary.text == "a cat"


def test_tracks_escape_what_would_be_markup_and_count_hours():
    shots_ = [described("a <b> & c", 3661.5, 3662.25)]
    assert "01:01:01.500 --> 01:01:02.250\na &lt;b&gt; &amp; c\n" in vtt(shots_)
    assert srt(shots_) == "1\n01:01:01,500 --> 01:01:02,250\na <b> & c\n"
