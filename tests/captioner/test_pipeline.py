import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from app.captioner import checkpoint, fused
from app.captioner.errors import CheckpointError, UnsupportedImage
from app.captioner.pipeline import Captioner
from support.fake import SteppingCaptioner
from support.tiny import SIZE_PX, photo, save_tiny_checkpoint, tiny_unpublished


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    return Captioner.load(save_tiny_checkpoint(tmp_path_factory.mktemp("store")))


def read(captioner, *seeds):
    return [captioner.read(photo(seed), max_pixels=10_000) for seed in seeds]


def test_bytes_become_the_networks_square(captioner):
    (image,) = read(captioner, 0)
    assert image.dtype == torch.uint8
    assert image.shape == (3, SIZE_PX, SIZE_PX)


def test_text_is_no_image(captioner):
    with pytest.raises(UnsupportedImage):
        captioner.read(b"hello", max_pixels=10_000)


def test_every_image_gets_its_candidates_best_first(captioner):
    for candidates in captioner.caption(read(captioner, 0, 1)):
        assert len(candidates) == 3
        scores = [candidate.score for candidate in candidates]
        assert scores == sorted(scores, reverse=True)
        assert len({candidate.text for candidate in candidates}) == 3


def test_a_caption_is_the_same_alone_and_in_company(captioner):
    images = read(captioner, *range(5))
    together = captioner.caption(images)
    for image, candidates in zip(images, together, strict=True):
        alone = captioner.caption([image])[0]
        assert [each.text for each in alone] == [each.text for each in candidates]
        assert alone[0].log_prob == pytest.approx(candidates[0].log_prob, abs=1e-4)


def test_an_image_that_nobody_waits_for_gets_no_caption_and_the_others_the_same(captioner):
    images = read(captioner, *range(3))
    everybody = captioner.caption(images)
    first, left, last = captioner.caption(images, wanted=lambda b: b != 1)
    assert left == ()
    for some, all_ in ((first, everybody[0]), (last, everybody[2])):
        assert [each.text for each in some] == [each.text for each in all_]
        assert some[0].log_prob == pytest.approx(all_[0].log_prob, abs=1e-4)


def test_callers_who_leave_while_the_batch_is_encoded_leave_before_the_search():
    captioner = SteppingCaptioner()
    captioner.gate.release()
    images = read(captioner, *range(3))
    captioner.caption(images, wanted=lambda b: b == 2)
    assert captioner.rows == [1] * 12
    assert captioner.caption(images, wanted=lambda _: False) == [(), (), ()]
    assert len(captioner.rows) == 12


def test_callers_who_leave_during_the_search_are_known_by_their_place_in_the_batch():
    captioner, answers = SteppingCaptioner(), []
    captioner.gate.release()
    images = read(captioner, *range(3))

    def wanted(b):
        answers.append(b)
        return b == 2 or (b == 1 and len(answers) <= 3)  # 0 leaves before the search, 1 during it

    found = captioner.caption(images, wanted=wanted)
    assert captioner.rows == [2] + [1] * 11
    assert [len(candidates) for candidates in found] == [0, 0, 3]


def test_words_make_up_the_caption(captioner):
    best = captioner.caption(read(captioner, 3))[0][0]
    assert " ".join(word.text for word in best.words) == best.text
    assert (
        sum(word.log_prob for word in best.words) >= best.log_prob - 1e-4
    )  # the end mark pays too


def test_each_word_says_where_it_looked(captioner):
    best = captioner.caption(read(captioner, 3))[0][0]
    for word in best.words:
        assert word.attention.shape == (2, 2)
        assert word.attention.sum() + word.sentinel == pytest.approx(1, abs=1e-5)
    assert len({word.attention.tobytes() for word in best.words}) == len(best.words)


def test_a_decoder_without_attention_gives_none():
    captioner = Captioner(tiny_unpublished("merge"))
    word = captioner.caption(read(captioner, 0))[0][0].words[0]
    assert word.attention is None
    assert word.sentinel is None


def test_the_golden_caption_is_said(captioner):
    captioner.check_golden()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return checkpoint.load(save_tiny_checkpoint(tmp_path_factory.mktemp("loaded")))


def asked(loaded, image=None, **fields):
    """Ask for another golden caption than the published one."""
    said = loaded.golden.said.model_copy(update=fields)
    golden = loaded.golden._replace(said=said, image=image or loaded.golden.image)
    return loaded._replace(golden=golden)


def test_a_network_that_says_something_else_is_refused(loaded):
    with pytest.raises(CheckpointError, match="golden caption is 'a lie'"):
        Captioner(asked(loaded, caption="a lie")).check_golden()


@pytest.mark.parametrize(("precision", "nats"), [("float32", 0.06), ("bfloat16", 0.7)])
def test_a_network_that_is_less_sure_is_refused(loaded, precision, nats):
    if not fused.computes(getattr(torch, precision)):
        pytest.skip("a CPU without bfloat16")
    Captioner(loaded, precision=precision).check_golden()
    less = asked(loaded, log_prob=loaded.golden.said.log_prob - nats)
    with pytest.raises(CheckpointError, match="golden caption"):
        Captioner(less, precision=precision).check_golden()


def test_a_close_second_will_do_in_bfloat16_alone(loaded):
    if not fused.computes(torch.bfloat16):
        pytest.skip("a CPU without bfloat16")
    exact = Captioner(loaded)
    second = exact.caption([exact.read(loaded.golden.image, max_pixels=10**6)])[0][1]
    close = asked(loaded, caption=second.text, log_prob=second.log_prob)
    Captioner(close, precision="bfloat16").check_golden()
    with pytest.raises(CheckpointError, match="golden caption"):
        Captioner(close).check_golden()


def test_a_checkpoint_without_a_golden_caption_is_refused():
    with pytest.raises(CheckpointError, match="has no golden caption"):
        Captioner(tiny_unpublished()).check_golden()


def test_a_golden_image_that_is_none_is_the_checkpoints_fault(loaded):
    with pytest.raises(CheckpointError, match="its golden image"):
        Captioner(asked(loaded, image=b"GIF89a")).check_golden()


def test_a_network_that_says_nothing_is_refused(loaded, monkeypatch):
    captioner = Captioner(loaded)
    monkeypatch.setattr(captioner, "caption", lambda images, **_: [() for _ in images])
    with pytest.raises(CheckpointError, match="says nothing"):
        captioner.check_golden()


def test_the_golden_caption_is_said_of_what_was_verified_not_of_what_lies_there_now(tmp_path):
    directory = save_tiny_checkpoint(tmp_path)
    captioner = Captioner.load(directory)
    (directory / "golden/image.png").unlink()
    os.mkfifo(directory / "golden/image.png")
    (directory / "golden/caption.json").write_text("{}")
    captioner.check_golden()


def test_a_lane_that_would_load_another_checkpoint_is_refused(tmp_path):
    one, other = (save_tiny_checkpoint(tmp_path / name) for name in "ab")
    changed = checkpoint.load(other).manifest.model_copy(update={"source_commit": "another"})
    expected = checkpoint.read_manifest(one)
    Captioner._load_alike(one, precision="float32", expected=expected)
    (one / "manifest.json").write_text(changed.model_dump_json())
    with pytest.raises(CheckpointError, match="was exchanged while it was loaded"):
        Captioner._load_alike(one, precision="float32", expected=expected)


def test_warm_up_leaves_no_trace(captioner):
    images = read(captioner, 2)
    before = captioner.caption(images)[0][0]
    captioner.warm_up([1, 2, 4])
    after = captioner.caption(images)[0][0]
    assert before.text == after.text
    assert np.array_equal(before.words[0].attention, after.words[0].attention)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_says_the_golden_caption(tmp_path):
    Captioner.load(save_tiny_checkpoint(tmp_path), device="cuda").check_golden()


def test_calls_side_by_side_say_what_they_say_alone():
    captioner = Captioner(tiny_unpublished(), cores=2)
    assert captioner.lanes == 2
    batches = [read(captioner, *range(n, n + 3)) for n in range(0, 12, 3)]
    alone = [captioner.caption(batch) for batch in batches]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(captioner.caption, batches))
    for expected, found in zip(alone, together, strict=True):
        for one, other in zip(expected, found, strict=True):
            assert [(each.text, each.log_prob) for each in one] == [
                (each.text, each.log_prob) for each in other
            ]


def test_a_captioner_that_was_told_no_cores_leaves_threads_alone_and_has_one_lane():
    assert Captioner(tiny_unpublished()).lanes == 1
