"""One caption for several frames: by a network of photos, and by one that was made for clips."""

import numpy as np
import pytest

from app.captioner.image.frames import evenly, frames_of
from app.captioner.pipeline import SHOT_FRAMES
from app.captioner.search import BeamArrays
from support.tiny import SIZE_PX, captioner_of, photo, tiny_unpublished

DECODERS = ("merge", "inject", "attention")


def squares(captioner, *seeds):
    return [captioner.read(photo(seed), max_pixels=10_000) for seed in seeds]


def texts(candidates):
    return [each.text for each in candidates]


@pytest.mark.parametrize(
    ("frames", "count", "chosen"),
    [
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (9, 3, [0, 4, 8]),
        (2, 4, [0, 0, 1, 1]),
        (1, 3, [0, 0, 0]),
        (5, 1, [2]),
    ],
)
def test_frames_are_chosen_evenly_from_the_first_to_the_last(frames, count, chosen):
    assert evenly(frames, count) == chosen


def test_a_shot_of_one_frame_has_the_caption_of_the_photo(captioner):
    (square,) = squares(captioner, 3)
    (alone,) = captioner.caption([square]).captions
    shown = captioner.caption_frames([square])
    assert (texts(shown), shown[0].log_prob) == (texts(alone), alone[0].log_prob)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_shot_that_stands_still_is_told_as_its_frame(decoder):
    captioner = captioner_of(tiny_unpublished(decoder))
    (square,) = squares(captioner, 3)
    (alone,) = captioner.caption([square]).captions
    still = captioner.caption_frames([square] * 3)
    assert texts(still) == texts(alone)
    if decoder != "attention":  # there the sentinel has three times as many regions against it
        assert still[0].log_prob == pytest.approx(alone[0].log_prob, abs=1e-4)


def test_every_frame_of_a_shot_has_its_say(captioner):
    frames = squares(captioner, 1, 2, 3)
    whole = captioner.caption_frames(frames)
    for left_out in range(3):
        rest = captioner.caption_frames([frames[n] for n in range(3) if n != left_out])
        assert rest[0].log_prob != pytest.approx(whole[0].log_prob, abs=1e-6)


def test_a_shot_looks_at_a_region_as_often_as_in_all_its_frames(captioner):
    said = captioner.caption_frames(squares(captioner, 1, 2, 3))[0]
    for word in said.words:
        assert word.attention.shape == (2, 2)
        assert word.attention.sum() + word.sentinel == pytest.approx(1, abs=1e-4)


def test_attention_to_frames_is_added_up_by_region():
    attention = np.array([0.1, 0.2, 0.3, 0.1, 0.3], np.float32).reshape(1, 1, 1, 5)
    beams = BeamArrays(*[np.zeros((1, 1))] * 5, attention)
    folded = beams.over_frames(2).attention_BKTR
    np.testing.assert_allclose(folded.ravel(), [0.4, 0.3, 0.3], rtol=1e-6)
    assert beams.over_frames(1) is beams


def test_photos_and_shots_go_through_one_batch(captioner):
    one, two, three, four = squares(captioner, 1, 2, 3, 4)
    shots = [captioner.shot([one, two]), captioner.shot([one, two, three])]
    mixed = captioner.caption([four, shots[0], one, shots[1]])
    assert not mixed.refused
    alone = [captioner.caption([image]).captions[0] for image in (four, shots[0], one, shots[1])]
    assert [texts(each) for each in mixed.captions] == [texts(each) for each in alone]


def test_nobody_who_waits_for_a_photo_waits_for_a_shot(captioner):
    one, two = squares(captioner, 1, 2)
    images = [one, captioner.shot([one, two]), two]
    found = captioner.caption(images, still_waiting=lambda b: b != 1).captions
    assert [len(candidates) for candidates in found] == [3, 0, 3]


def test_of_a_long_shot_a_few_frames_are_looked_at(captioner):
    frames = squares(captioner, *range(40))
    shot = captioner.shot(frames)
    assert shot.shape == (SHOT_FRAMES, SIZE_PX, SIZE_PX, 3)
    np.testing.assert_array_equal(shot[0], frames[0])
    np.testing.assert_array_equal(shot[-1], frames[-1])


def test_a_shot_has_a_frame(captioner):
    with pytest.raises(ValueError, match="one frame or more"):
        captioner.caption_frames([])


def test_a_shot_shows_nothing_if_no_frame_does(captioner):
    plain, (shown,) = np.full((SIZE_PX, SIZE_PX, 3), 9, np.uint8), squares(captioner, 1)
    assert captioner.caption_frames([plain, plain]).one_colour
    assert not captioner.caption_frames([plain, shown]).one_colour


def clips_captioner(frames, decoder="attention", frames_per_clip=3):
    changes = {"frames": frames, "frames_per_clip": frames_per_clip}
    return captioner_of(tiny_unpublished(decoder, **changes))


@pytest.mark.parametrize("frames", ["mean", "lstm"])
def test_to_a_network_of_clips_a_photo_is_a_clip_that_stands_still(frames):
    captioner = clips_captioner(frames)
    (square,) = squares(captioner, 1)
    (alone,) = captioner.caption([square]).captions
    still = captioner.caption_frames([square] * 3)
    assert texts(still) == texts(alone)
    assert still[0].log_prob == pytest.approx(alone[0].log_prob, abs=1e-5)


def test_a_network_of_clips_reads_as_many_frames_as_it_was_trained_to(captioner):
    reader = clips_captioner("lstm", frames_per_clip=4)
    short, long = squares(reader, 1, 2), squares(reader, *range(9))
    assert len(frames_of(reader.shot(short))) == len(frames_of(reader.shot(long))) == 4


def test_attention_of_an_lstm_is_a_row_of_frames():
    captioner = clips_captioner("lstm", frames_per_clip=4)
    for word in captioner.caption_frames(squares(captioner, 1, 2, 3, 4))[0].words:
        assert word.attention.shape == (1, 4)
        assert word.attention.sum() + word.sentinel == pytest.approx(1, abs=1e-4)
