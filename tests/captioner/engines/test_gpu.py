"""A network prepared for a GPU says what the CPU says; what needs no GPU is proved without one."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from app.captioner.architecture import ENCODER_SHAPES, Architecture
from app.captioner.engines import gpu
from app.captioner.errors import CheckpointError, DeviceFault, OutOfMemory
from app.captioner.model import beam
from app.captioner.model.network import Network
from app.captioner.pipeline import Captioner
from app.captioner.search import SearchOptions, always_waiting
from app.captioner.vocabulary import BOS, EOS, PAD, UNK
from support.tiny import as_loaded, photo, tiny_network, tiny_unpublished

OPTIONS = SearchOptions(beam_width=3, min_words=2, max_words=6, no_repeat_ngram_size=2)


def on_gpu(test):
    """Mark a test that needs a GPU."""
    there = torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(not there, reason="no CUDA device")(test))


def search(decoder, features, still_waiting=None):
    marks = {"bos": BOS, "eos": EOS, "banned": (PAD, UNK)}
    return beam.search(decoder, features, OPTIONS, **marks, still_waiting=still_waiting)


@pytest.mark.parametrize("decoder", ["merge", "inject", "attention"])
def test_a_search_that_asks_nothing_finds_the_same(decoder):
    network = tiny_network(decoder)
    features = torch.randn(4, 4, 1280, generator=torch.Generator().manual_seed(3))
    asking, silent = (search(network.decoder, features, asked) for asked in (always_waiting, None))
    assert torch.equal(asking.lengths_BK, silent.lengths_BK)
    torch.testing.assert_close(asking.scores_BK, silent.scores_BK)
    T = asking.words_BKT.shape[-1]
    assert torch.equal(asking.words_BKT, silent.words_BKT[..., :T])


def imagined(decoder):
    """Build on a GPU that is not there: torch knows types and devices, and has no values."""
    network = tiny_network(decoder, global_feature=decoder == "attention")
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(parameter.to("cuda")))
        for name, buffer in module.named_buffers(recurse=False):
            if name != "num_batches_tracked":  # torch knows its value, and would have to move it
                setattr(module, name, buffer.to("cuda"))
    return network


class TensorsOfTheHost(TorchDispatchMode):
    """Note every operation that reads or makes one, as ``tensor[0] = 1.0`` does."""

    def __init__(self):
        super().__init__()
        self.met = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, made)) if isinstance(t, torch.Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.met.append(str(operation))
        return made


@pytest.mark.parametrize("decoder", ["merge", "inject", "attention"])
def test_nothing_on_the_way_asks_the_device_or_leaves_it(decoder):
    """What a CUDA graph cannot hold: a value the host looks at, a tensor of the host."""
    with FakeTensorMode(), torch.inference_mode():
        network = imagined(decoder)
        images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8, device="cuda")
        with TensorsOfTheHost() as of_the_host:
            features = network.encoder(images)
            beams = search(network.decoder, features, None)
        assert of_the_host.met == []
        assert {part.device.type for part in beams if part is not None} == {"cuda"}
        assert beams.words_BKT.shape == (2, OPTIONS.beam_width, OPTIONS.max_words + 1)
        with pytest.raises(DataDependentOutputException):
            search(network.decoder, features, always_waiting)


def test_out_of_memory_lets_go_of_what_the_job_held(monkeypatch):
    """The frames of an exception keep its tensors; the cache could not be emptied of them."""
    held, alive = [], []

    def job():
        tensor = torch.zeros(3)
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(held[0]() is not None))
    gc.disable()
    try:
        with pytest.raises(OutOfMemory):
            gpu.guarded(job)
    finally:
        gc.enable()
    assert alive == [False]


def test_a_batch_takes_the_smallest_captured_size_that_holds_it():
    assert gpu.smallest_for(5, [1, 2, 4, 8, 16]) == 8
    assert gpu.smallest_for(4, [1, 2, 4, 8]) == 4
    assert gpu.smallest_for(9, [1, 2, 4, 8]) == 9
    assert gpu.smallest_for(3, []) == 3


@pytest.mark.parametrize("encoder", ["mobilenet_v2", "resnet50", "efficientnet_b0"])
@torch.inference_mode()
def test_the_prepared_network_computes_the_same(encoder):
    torch.manual_seed(0)
    architecture = Architecture(encoder=encoder, features="grid", decoder="attention", words=16)
    network = Network(architecture).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    expected = network.encoder(images)
    exact, rounded = (gpu.prepared(network, t) for t in (torch.float32, torch.bfloat16))

    def error(prepared):  # of all features together: with random weights they are 1e-8 or 100
        return (prepared.encoder(images) - expected).norm() / expected.norm()

    assert error(exact) < 1e-5
    assert rounded.encoder(images).dtype == torch.float32
    assert 1e-3 < error(rounded) < 0.1  # it did round
    words = torch.randint(4, 16, (2, 1, 5))
    torch.testing.assert_close(
        exact.decoder(expected, words), network.decoder(expected, words), rtol=1e-4, atol=1e-5
    )


def test_what_the_device_does_is_said_in_our_words():
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def failed():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def wrong():
        raise RuntimeError("a mistake of ours")

    assert gpu.guarded(lambda: 7) == 7
    for job, kind, text in (
        (full, OutOfMemory, "does not fit"),
        (failed, DeviceFault, "has failed"),
        (wrong, RuntimeError, "a mistake of ours"),
    ):
        with pytest.raises(kind, match=text):
            gpu.guarded(job)


# --- on a GPU -----------------------------------------------------------------------------------


@pytest.fixture
def pair():
    """Give the same network on the CPU and on the GPU."""
    loaded = as_loaded(tiny_unpublished())
    on_gpu = Captioner.of(loaded, device="cuda")
    return Captioner.of(loaded, precision="float32"), on_gpu


def squares(captioner, count):
    return [captioner.read(photo(seed), max_pixels=10_000) for seed in range(count)]


def said(result):
    return [[candidate.text for candidate in each] for each in result.captions]


@on_gpu
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
def test_a_gpu_says_what_the_cpu_says(pair, count):
    cpu, gpu_ = pair
    gpu_.warm_up([1, 2, 4, 8])
    images = squares(cpu, count)
    expected, found = cpu.caption(images), gpu_.caption(images)
    assert said(found) == said(expected)
    for theirs, ours in zip(expected.captions, found.captions, strict=True):
        assert ours[0].log_prob == pytest.approx(theirs[0].log_prob, abs=0.05)
        assert ours[0].words[0].attention == pytest.approx(theirs[0].words[0].attention, abs=0.01)


@on_gpu
def test_calls_side_by_side_on_a_gpu_say_what_they_say_alone(pair):
    _, gpu_ = pair
    assert gpu_.engine.max_concurrent_batches == 2
    images = squares(gpu_, 12)
    batches = [images[n : n + size] for n, size in enumerate([1, 4, 2, 8, 3, 5])] * 5
    alone = [said(gpu_.caption(batch)) for batch in batches]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(gpu_.caption, batches))
    assert [said(result) for result in together] == alone


@on_gpu
def test_what_cannot_be_captured_runs_step_by_step(pair, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no")

    cpu, gpu_ = pair
    monkeypatch.setattr(gpu.CudaGraphs, "_graphs", refuse)
    images = squares(cpu, 3)
    with pytest.warns(RuntimeWarning, match="batches of 3 run step by step"):
        found = gpu_.caption(images)
    assert said(found) == said(cpu.caption(images))


@on_gpu
def test_whom_nobody_waits_for_is_left_out_on_a_gpu(pair):
    cpu, gpu_ = pair
    images = squares(cpu, 3)
    found = said(gpu_.caption(images, lambda b: b != 1))
    assert found[1] == []
    assert [found[0], found[2]] == said(cpu.caption([images[0], images[2]]))
    assert gpu_.caption(images, lambda _: False).captions == ((), (), ())


@on_gpu
def test_a_gpu_does_not_compute_in_int8():
    with pytest.raises(CheckpointError, match="cannot compute in int8: choose float32"):
        Captioner.of(as_loaded(tiny_unpublished()), device="cuda", precision="int8")


@on_gpu
@pytest.mark.parametrize("encoder", ENCODER_SHAPES)
@torch.inference_mode()
def test_every_encoder_can_be_captured(encoder):
    architecture = Architecture(encoder=encoder, features="grid", decoder="attention", words=16)
    network = gpu.prepared(Network(architecture).eval().to("cuda"), torch.bfloat16)
    find = partial(search, network.decoder)
    answer = gpu.CudaGraphs(network, find, 64).caption([np.zeros((64, 64, 3), np.uint8)] * 2)
    assert answer.beams.words_BKT.device.type == "cpu"
    assert answer.search_s > 0
