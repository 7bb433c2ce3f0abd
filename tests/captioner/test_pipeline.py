import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openvino as ov
import pytest
import torch

from app.captioner.engines import cpu
from app.captioner.errors import CheckpointError, UnsupportedImage
from app.captioner.manifest import Said
from app.captioner.pipeline import BatchResult, Captioner
from app.captioner.search import always_waiting
from support.fake import SteppingCaptioner
from support.tiny import SIZE_PX, captioner_of, photo, tiny_unpublished


def read(captioner, *seeds):
    return [captioner.read(photo(seed), max_pixels=10_000) for seed in seeds]


def test_bytes_become_the_networks_square(captioner):
    (image,) = read(captioner, 0)
    assert image.dtype == np.uint8
    assert image.shape == (SIZE_PX, SIZE_PX, 3)


def test_text_is_no_image(captioner):
    with pytest.raises(UnsupportedImage):
        captioner.read(b"hello", max_pixels=10_000)


@pytest.mark.parametrize(("beside", "threads"), [(False, {3}), (True, {1})])
def test_beside_another_captioner_one_core_prepares_all_workers(
    directory, monkeypatch, beside, threads
):
    taken = []

    class Counted(ThreadPoolExecutor):
        def __init__(self, count):
            taken.append(count)
            super().__init__(count)

    monkeypatch.setattr(cpu, "ThreadPoolExecutor", Counted)
    captioner = Captioner.load(directory, workers=3, beside=beside)
    captioner.warm_up([1, 2])
    assert (set(taken), len(taken)) == (threads, 3)
    assert captioner.engine.max_concurrent_batches == 3
    captioner.check_golden()


def test_every_image_gets_its_candidates_best_first(captioner):
    for candidates in captioner.caption(read(captioner, 0, 1)).captions:
        assert len(candidates) == 3
        scores = [candidate.score for candidate in candidates]
        assert scores == sorted(scores, reverse=True)
        assert len({candidate.text for candidate in candidates}) == 3


def test_a_caption_is_the_same_alone_and_in_company(captioner):
    images = read(captioner, *range(5))
    together = captioner.caption(images).captions
    for image, candidates in zip(images, together, strict=True):
        alone = captioner.caption([image]).captions[0]
        assert [each.text for each in alone] == [each.text for each in candidates]
        assert alone[0].log_prob == pytest.approx(candidates[0].log_prob, abs=1e-4)


def test_an_image_that_nobody_waits_for_gets_no_caption_and_the_others_the_same(captioner):
    images = read(captioner, *range(3))
    everybody = captioner.caption(images).captions
    first, left, last = captioner.caption(images, lambda b: b != 1).captions
    assert left == ()
    for some, all_ in ((first, everybody[0]), (last, everybody[2])):
        assert [each.text for each in some] == [each.text for each in all_]
        assert some[0].log_prob == pytest.approx(all_[0].log_prob, abs=1e-4)


def test_callers_who_leave_while_the_batch_is_encoded_leave_before_the_search(captioner):
    images, asked = read(captioner, *range(3)), []

    def still_waiting(b):
        asked.append(b)
        return b == 2

    found = captioner.caption(images, still_waiting)
    assert asked[:3] == [0, 1, 2]
    assert set(asked[3:]) == {2}
    assert [bool(candidates) for candidates in found.captions] == [False, False, True]
    nobody = captioner.caption(images, lambda _: False)
    assert nobody.captions == ((), (), ())
    assert [stage.name for stage in nobody.stages] == ["encode", "search"]


def test_callers_who_leave_during_the_search_are_known_by_their_place_in_the_batch():
    captioner, answers = SteppingCaptioner(), []
    captioner.engine.gate.release()
    images = read(captioner, *range(3))

    def still_waiting(b):
        answers.append(b)
        return b == 2 or (b == 1 and len(answers) <= 3)  # 0 leaves at once, 1 a step later

    found = captioner.caption(images, still_waiting).captions
    assert captioner.engine.images == [3, 2] + [1] * 10
    assert [len(candidates) for candidates in found] == [0, 0, 3]


def test_the_parts_of_the_work_are_told_one_after_another(captioner):
    encode, search = captioner.caption(read(captioner, 0)).stages
    assert (encode.name, search.name) == ("encode", "search")
    assert encode.began_s < encode.ended_s == search.began_s < search.ended_s


def test_words_make_up_the_caption(captioner):
    best = captioner.caption(read(captioner, 3)).captions[0][0]
    assert " ".join(word.text for word in best.words) == best.text
    assert (
        sum(word.log_prob for word in best.words) >= best.log_prob - 1e-4
    )  # the end mark pays too


def test_each_word_says_where_it_looked(captioner):
    best = captioner.caption(read(captioner, 3)).captions[0][0]
    for word in best.words:
        assert word.attention.shape == (2, 2)
        assert word.attention.sum() + word.sentinel == pytest.approx(1, abs=1e-5)
    assert len({word.attention.tobytes() for word in best.words}) == len(best.words)


def test_a_decoder_without_attention_gives_none():
    captioner = captioner_of(tiny_unpublished("merge"))
    word = captioner.caption(read(captioner, 0)).captions[0][0].words[0]
    assert word.attention is None
    assert word.sentinel is None


def test_the_golden_caption_is_said(captioner):
    captioner.check_golden()


def asked(loaded, image=None, **fields):
    """Ask for another golden caption than the published one."""
    said = loaded.golden.said.model_copy(update=fields)
    golden = loaded.golden._replace(said=said, image=image or loaded.golden.image)
    return loaded._replace(golden=golden)


def on_cpu(loaded, precision="float32"):
    return Captioner.of(loaded, precision=precision)


def test_a_network_that_says_something_else_is_refused(loaded):
    with pytest.raises(CheckpointError, match="golden caption is 'a lie'"):
        on_cpu(asked(loaded, caption="a lie")).check_golden()


def computes_bfloat16():
    return ov.Core().get_property("CPU", "INFERENCE_PRECISION_HINT") != ov.Type.f32


needs_bfloat16 = pytest.mark.skipif(not computes_bfloat16(), reason="a CPU without bfloat16")


@pytest.mark.parametrize(
    ("precision", "nats"),
    [("float32", 0.06), pytest.param("bfloat16", 0.7, marks=needs_bfloat16)],
)
def test_a_network_that_is_less_sure_is_refused(loaded, precision, nats):
    on_cpu(loaded, precision).check_golden()
    less = asked(loaded, log_prob=loaded.golden.said.log_prob - nats)
    with pytest.raises(CheckpointError, match="golden caption"):
        on_cpu(less, precision).check_golden()


class Reduced(Captioner):
    """A float32 engine that is told to be of a reduced precision: rounding is not tested here."""

    @classmethod
    def as_if(cls, loaded, precision):
        exact = on_cpu(loaded)
        parts = exact.engine, exact.vocabulary, exact.manifest
        return cls(*parts, golden=loaded.golden, precision=precision)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_close_second_will_do_in_reduced_precision_alone(loaded, precision):
    exact = on_cpu(loaded)
    image = exact.read(loaded.golden.image, max_pixels=10**6)
    second = exact.caption([image]).captions[0][1]
    close = asked(loaded, caption=second.text, log_prob=second.log_prob)
    Reduced.as_if(close, precision).check_golden()
    with pytest.raises(CheckpointError, match="golden caption"):
        on_cpu(close).check_golden()


def test_what_int8_must_say_is_another_sentence_if_the_checkpoint_has_one(loaded):
    exact = loaded.golden.said
    int8 = Said(caption=exact.caption, log_prob=exact.log_prob)
    other = asked(loaded, caption="a lie", int8=int8)
    Reduced.as_if(other, "int8").check_golden()
    for precision in ("float32", "bfloat16"):
        with pytest.raises(CheckpointError, match="golden caption is 'a lie'"):
            Reduced.as_if(other, precision).check_golden()
    less = Said(caption=exact.caption, log_prob=exact.log_prob - 0.7)
    with pytest.raises(CheckpointError, match="golden caption"):
        Reduced.as_if(asked(loaded, int8=less), "int8").check_golden()


def test_a_checkpoint_without_a_golden_caption_is_refused():
    with pytest.raises(CheckpointError, match="has no golden caption"):
        captioner_of(tiny_unpublished()).check_golden()


def test_a_golden_image_that_is_none_is_the_checkpoints_fault(loaded):
    with pytest.raises(CheckpointError, match="its golden image"):
        on_cpu(asked(loaded, image=b"GIF89a")).check_golden()


def test_a_network_that_says_nothing_is_refused(loaded, monkeypatch):
    captioner = on_cpu(loaded)
    silent = BatchResult(((),), {}, ())
    monkeypatch.setattr(captioner, "caption", lambda images: silent)  # noqa: ARG005
    with pytest.raises(CheckpointError, match="says nothing"):
        captioner.check_golden()


def test_the_golden_caption_is_said_of_what_was_verified_not_of_what_lies_there_now(
    directory, tmp_path
):
    directory = shutil.copytree(directory, tmp_path / "tiny/1")
    captioner = Captioner.load(directory, precision="float32")
    (directory / "golden/image.png").unlink()
    os.mkfifo(directory / "golden/image.png")
    (directory / "golden/caption.json").write_text("{}")
    captioner.check_golden()


def test_warm_up_leaves_no_trace(captioner):
    images = read(captioner, 2)
    before = captioner.caption(images).captions[0][0]
    captioner.warm_up([1, 2, 4])
    after = captioner.caption(images).captions[0][0]
    assert before.text == after.text
    assert np.array_equal(before.words[0].attention, after.words[0].attention)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_says_the_golden_caption(directory):
    Captioner.load(directory, device="cuda").check_golden()


def test_calls_side_by_side_say_what_they_say_alone(loaded):
    captioner = Captioner.of(loaded, precision="float32", workers=2)
    assert captioner.engine.max_concurrent_batches == 2
    batches = [read(captioner, *range(n, n + 3)) for n in range(0, 12, 3)] * 3
    alone = [told(captioner.caption(batch)) for batch in batches]
    with ThreadPoolExecutor(4) as threads:  # more callers than workers: two of them wait
        together = list(threads.map(captioner.caption, batches))
    assert [told(result) for result in together] == alone


def told(result):
    return [[(each.text, each.log_prob) for each in image] for image in result.captions]


def test_a_captioner_that_was_told_nothing_runs_one_batch_at_a_time(captioner):
    assert captioner.engine.max_concurrent_batches == 1
    assert not captioner.engine.batches_cost_alike


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("decoder", ["attention", "inject", "merge"])
def test_a_summary_is_what_a_search_has_of_the_image(decoder, count):
    changes = {"features": "vector"} if decoder != "attention" else {}
    captioner = captioner_of(tiny_unpublished(decoder, **changes))
    squares = [captioner.read(photo(seed), max_pixels=10**6) for seed in range(count)]
    found = captioner.engine.run(squares, always_waiting).beams.summary_BW
    np.testing.assert_allclose(captioner.summaries(squares), found, atol=1e-5)
