"""What runs without torch says what torch says: every decoder, every encoder, every way to search.

The networks are full of random numbers and the squares small, so that words are close: what agrees
here agrees in a trained network.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from app.captioner.architecture import ENCODER_SHAPES
from app.captioner.engines.cpu import CpuEngine
from app.captioner.engines.torch_engine import TorchEngine, stacked
from app.captioner.graphs import ENCODE, ENCODE_INT8
from app.captioner.model import torch_checkpoint
from app.captioner.search import SearchOptions, always_waiting
from support.tiny import SIZE_PX, as_loaded, tiny_unpublished

TOLERANCE = 1e-3
DECODERS = {
    "merge": {},
    "inject": {},
    "attention": {},
    "attention with global_feature": {"global_feature": True},
    "attention with tied words and classes": {"tied_words": True, "classes": True},
}
SEARCHES = {
    "greedy": {"beam_width": 1},
    "three beams": {"beam_width": 3},
    "as many as words": {"beam_width": 16},
    "no repeats": {"no_repeat_ngram_size": 2, "min_words": 6},
    "long": {"min_words": 8, "length_penalty": 0.0},
}


def squares(count):
    """Give blocks of random colours: an image of noise looks like any other."""
    blocks = np.random.default_rng(7).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return list(blocks.repeat(SIZE_PX // 4, 1).repeat(SIZE_PX // 4, 2))


def telling(unpublished):
    """Let what an image shows matter: as networks begin, all of them look nearly the same."""
    encoder, decoder = unpublished.network.encoder, unpublished.network.decoder
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            module.train()
    with torch.no_grad():
        features_BRD = encoder(stacked(squares(8), unpublished.network))
        if hasattr(decoder, "normalise"):
            decoder.normalise.weight.fill_(2)
        else:
            read = features_BRD if decoder.reader is None else decoder.reader(features_BRD[:, None])
            decoder.image.weight.div_(read.std())
    unpublished.network.eval()
    return as_loaded(unpublished)


def with_search(loaded, **options):
    search = SearchOptions(**{"max_words": 8, **options})
    return loaded.with_manifest(loaded.manifest.model_copy(update={"search": search}))


def engines(loaded, *, workers=1):
    """Give the same network, as a checkpoint holds it, in torch and on the CPU."""
    network = torch_checkpoint.of(loaded).network
    expected = TorchEngine(network, loaded.manifest.search)
    return expected, CpuEngine(loaded, precision="float32", workers=workers)


def assert_same(found, expected, tolerance=TOLERANCE):
    """All candidates of all images: words, log-probabilities and where each word looked."""
    assert np.array_equal(np.isfinite(found.scores_BK), np.isfinite(expected.scores_BK))
    for b, k in np.argwhere(np.isfinite(expected.scores_BK)):
        length = expected.lengths_BK[b, k]
        ours, theirs = (each.words_BKT[b, k, :length].tolist() for each in (found, expected))
        assert ours == theirs
        for name in ("log_probs_BK", "scores_BK"):
            theirs = getattr(expected, name)[b, k]
            assert getattr(found, name)[b, k] == pytest.approx(theirs, abs=tolerance, rel=0)
        for name in ("word_log_probs_BKT", "attention_BKTR"):
            if getattr(expected, name) is None:
                assert getattr(found, name) is None
                continue
            ours, theirs = (getattr(each, name)[b, k, :length] for each in (found, expected))
            np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=0)


def assert_same_images(found, expected, tolerance=TOLERANCE):
    """What is told of an image besides its captions."""
    for name in ("summary_BW", "classes_BC"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max(), rtol=0)


def assert_parity(loaded, images, tolerance=TOLERANCE):
    results = [engine.run(images, always_waiting) for engine in engines(loaded)]
    assert results[0].images == results[1].images == list(range(len(images)))
    assert np.ptp(results[0].beams.log_probs_BK[:, 0]) > 10 * TOLERANCE  # images do differ
    assert_same(results[1].beams, results[0].beams, tolerance)
    assert_same_images(results[1].beams, results[0].beams, tolerance)


@pytest.fixture(scope="module", params=DECODERS)
def loaded(request):
    decoder = request.param.split()[0]
    return telling(tiny_unpublished(decoder, **DECODERS[request.param]))


@pytest.mark.parametrize("search", SEARCHES)
def test_every_decoder_says_in_every_search_what_torch_says(loaded, search):
    assert_parity(with_search(loaded, **SEARCHES[search]), squares(5))


def test_every_decoder_says_of_shots_what_torch_says(loaded):
    shots = list(np.stack(squares(12)).reshape(3, 4, SIZE_PX, SIZE_PX, 3))
    assert_parity(loaded, shots)


@pytest.mark.parametrize("features", ["grid", "vector"])
@pytest.mark.parametrize("frames", ["mean", "lstm"])
@pytest.mark.parametrize("decoder", ["merge", "inject", "attention"])
def test_every_reader_of_frames_says_what_torch_says(decoder, frames, features):
    if (decoder, features) == ("attention", "vector"):
        pytest.skip("attention looks at regions")
    changes = {"frames": frames, "frames_per_clip": 4, "features": features}
    unpublished = tiny_unpublished(decoder, **changes)
    for parameter in unpublished.network.decoder.reader.parameters():
        parameter.data.mul_(3)
    loaded = telling(unpublished)
    assert_parity(loaded, list(np.stack(squares(12)).reshape(3, 4, SIZE_PX, SIZE_PX, 3)))
    assert_parity(loaded, squares(3))  # photos are clips that stand still


@pytest.mark.parametrize("features", ["grid", "vector"])
@pytest.mark.parametrize(
    "encoder",
    [
        pytest.param(each, marks=[pytest.mark.long] if each != "mobilenet_v2" else [])
        for each in ENCODER_SHAPES
    ],
)
def test_every_encoder_shows_what_torch_shows(encoder, features):
    decoder = "attention" if features == "grid" else "merge"
    loaded = telling(tiny_unpublished(decoder, encoder=encoder, features=features))
    # a hundred layers of random numbers: torch in float32 is 3e-4 from itself in float64
    assert_parity(loaded, squares(3), TOLERANCE if encoder != "resnet101" else 5 * TOLERANCE)


def left_after(leaving):
    """Let image b be asked for so often, and no more."""
    asked = dict.fromkeys(leaving, 0)

    def still_waiting(image):
        asked[image] += 1
        return asked[image] < leaving[image]

    return still_waiting


def test_images_that_leave_during_the_search_change_nothing_for_the_others(loaded):
    loaded, images = with_search(loaded, min_words=8), squares(5)
    torch_engine, cpu_engine = engines(loaded)
    # the CPU asks once more, before the search
    found = cpu_engine.run(images, left_after({0: 99, 1: 3, 2: 99, 3: 6, 4: 99}))
    expected = torch_engine.run(images, left_after({0: 99, 1: 2, 2: 99, 3: 5, 4: 99}))
    assert found.images == expected.images
    assert_same(found.beams, expected.beams)
    assert np.isneginf(found.beams.scores_BK[[1, 3]]).all()


def test_images_that_leave_before_the_search_are_none_of_the_result(loaded):
    torch_engine, cpu_engine = engines(loaded)
    found = cpu_engine.run(squares(4), lambda image: image in {1, 3})
    assert found.images == [1, 3]
    staying = [squares(4)[n] for n in found.images]
    assert_same(found.beams, torch_engine.run(staying, always_waiting).beams)
    nobody = cpu_engine.run(squares(4), lambda _: False)
    assert (nobody.images, nobody.beams) == ([], None)


def test_a_caption_alone_and_in_a_batch_is_the_same(loaded):
    """In a batch above eight too, which is encoded in parts."""
    _, engine = engines(loaded)
    images = squares(19)
    together = engine.run(images, always_waiting).beams
    for b, image in enumerate(images):
        alone = engine.run([image], always_waiting).beams
        part = together._make(None if each is None else each[b : b + 1] for each in together)
        assert_same(part, alone, tolerance=1e-4)


def test_two_threads_side_by_side_say_what_they_say_alone(loaded):
    _, engine = engines(loaded, workers=2)
    images = squares(12)
    batches = [images[n : n + size] for n, size in enumerate([1, 4, 2, 8, 3, 5])] * 3
    alone = [engine.run(batch, always_waiting).beams for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda batch: engine.run(batch, always_waiting), batches))
    for found, expected in zip(together, alone, strict=True):
        assert_same(found.beams, expected, tolerance=1e-5)


def test_the_decoder_in_int8_says_the_same_alone_and_in_a_batch(loaded):
    """With the encoder of float32 in the place of the quantised one, which `publish` makes."""
    texts = {**loaded.graphs, ENCODE_INT8: loaded.graphs[ENCODE]}
    int8 = CpuEngine(loaded._replace(graphs=texts), precision="int8", workers=1)
    _, exact = engines(loaded)
    images = squares(11)
    together = int8.run(images, always_waiting).beams
    for b, image in enumerate(images):
        alone = int8.run([image], always_waiting).beams
        part = together._make(None if each is None else each[b : b + 1] for each in together)
        assert_same(part, alone, tolerance=1e-3)
    expected = exact.run(images, always_waiting).beams
    off = np.abs(together.log_probs_BK[:, 0] - expected.log_probs_BK[:, 0])
    assert 0 < off.max() < 0.5  # it did round
