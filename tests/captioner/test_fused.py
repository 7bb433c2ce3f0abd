"""A network prepared for a CPU says what it said before, alone and in company."""

import copy

import pytest
import torch

from app.captioner import fused
from app.captioner.errors import CheckpointError
from app.captioner.network import ENCODERS, Architecture, Network
from app.captioner.pipeline import Captioner, fastest_precision
from support.tiny import photo, tiny_network, tiny_unpublished

SIDE_PX = {"vgg16": 224}  # its classifier takes no other side
LEFT_TO_ONEDNN = {("convnext_tiny", "grid"), ("convnext_tiny", "vector"), ("vgg16", "vector")}
pytestmark = pytest.mark.skipif(not fused.available(), reason="torch without oneDNN")


def images(count=3, side_px=64):
    generator = torch.Generator().manual_seed(1)
    size = (count, 3, side_px, side_px)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


def with_lively_norms(network: Network) -> Network:
    """Give batch norms statistics and weights that a wrong folding would show."""
    generator = torch.Generator().manual_seed(2)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.running_mean, module.bias.data):
                tensor.uniform_(-0.2, 0.2, generator=generator)
    return network


@torch.inference_mode()
def difference(network, prepared, images_BCHW):
    """Give the difference of the features, relative to their size."""
    expected = network.encoder(images_BCHW)
    return ((prepared.encoder(images_BCHW) - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("features", ["grid", "vector"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_gives_the_same_features(encoder, features):
    architecture = Architecture(
        encoder=encoder, features=features, decoder="merge", words=8, hidden_width=8
    )
    torch.manual_seed(0)
    network = with_lively_norms(Network(architecture)).eval()
    side_px = SIDE_PX.get(encoder, 64)
    exact = fused.fused(network, torch.float32)
    assert difference(network, exact, images(2, side_px)) < 1e-4
    by_onednn = any(type(module) is fused._Convolution for module in exact.modules())
    assert by_onednn == ((encoder, features) in LEFT_TO_ONEDNN)
    if not fused.computes(torch.bfloat16):
        return
    rounded = fused.fused(network, torch.bfloat16)
    assert 1e-5 < difference(network, rounded, images(2, side_px)) < 0.1


@pytest.mark.parametrize("decoder", ["merge", "inject", "attention"])
@torch.inference_mode()
def test_every_decoder_gives_the_same_words_and_attention(decoder):
    network = tiny_network(decoder)
    prepared = fused.fused(network, torch.float32).decoder
    features_BRD = network.encoder(images())
    words_BK = torch.tensor([[4, 5], [6, 7], [8, 9]])
    found = []
    for each in (network.decoder, prepared):
        state = each.start(features_BRD, 2)
        _, state, _ = each.step(torch.ones_like(words_BK), state)
        found.append(each.step(words_BK, each.reorder(state, torch.tensor([[1, 0]] * 3))))
    (expected, _, expected_attention), (logits, _, attention) = found
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    if decoder == "attention":
        torch.testing.assert_close(attention, expected_attention, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_the_likeliest_words_have_exact_scores_in_bfloat16_too():
    if not fused.computes(torch.bfloat16):
        pytest.skip("a CPU without bfloat16")
    torch.manual_seed(0)
    architecture = Architecture(
        encoder="mobilenet_v2", features="grid", decoder="attention", words=500, hidden_width=64
    )
    network = Network(architecture).eval()
    torch.nn.init.normal_(network.decoder.words.weight)
    rows_BKH = torch.randn(4, 3, 64)
    exact_BKV = network.decoder.words(rows_BKH)
    scores_BKV = fused.fused(network, torch.bfloat16).decoder.words(rows_BKH)
    best = exact_BKV.topk(fused.EXACT_WORDS // 2)
    torch.testing.assert_close(scores_BKV.gather(-1, best.indices), best.values)
    assert 1e-3 < (scores_BKV - exact_BKV).abs().max() < 0.2
    torch.testing.assert_close(scores_BKV.logsumexp(-1), exact_BKV.logsumexp(-1), atol=1e-3, rtol=0)


def with_halves(network: Network) -> Network:
    """Round all weights as a checkpoint does."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.half())
    return network


@pytest.mark.skipif(not fused._row_counts(), reason="no fbgemm that rounds alike")
@torch.inference_mode()
def test_weights_that_are_halves_lie_in_memory_as_halves_and_compute_in_float32():
    network = with_halves(tiny_network(hidden_width=64))
    decoder = fused.fused(network, torch.float32).decoder
    assert type(decoder.words) is fused._HalfWeights
    rows_NH = torch.randn(250, 64)
    expected_NV = network.decoder.words(rows_NH)
    torch.testing.assert_close(decoder.words(rows_NH), expected_NV, rtol=1e-5, atol=1e-5)
    rounded_NV = network.decoder.words(rows_NH.half().float())
    assert (rounded_NV - expected_NV).abs().max() > 1e-4  # which rounding the rows would not reach
    exact = fused.fused(tiny_network(hidden_width=64), torch.float32).decoder
    assert type(exact.words) is not fused._HalfWeights


@pytest.mark.skipif(not fused._row_counts(), reason="no fbgemm that rounds alike")
@torch.inference_mode()
def test_a_row_is_computed_the_same_way_among_any_number_of_rows():
    decoder = fused.fused(with_halves(tiny_network(hidden_width=200)), torch.float32).decoder
    rows_NH = torch.randn(250, 200)
    together_NV = decoder.words(rows_NH)
    for count in range(1, 251):
        assert torch.equal(decoder.words(rows_NH[:count]), together_NV[:count])


def test_without_fbgemm_halves_are_taken_as_they_are(monkeypatch):
    monkeypatch.setattr(fused, "_row_counts", list)
    decoder = fused.fused(with_halves(tiny_network()), torch.float32).decoder
    assert type(decoder.words) is fused._Linear


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_caption_is_the_same_bit_by_bit_alone_and_in_company(precision, halves):
    if not fused.computes(getattr(torch, precision)):
        pytest.skip("this CPU has no bfloat16")
    loaded = tiny_unpublished()
    if halves:
        with_halves(loaded.network)
    captioner = Captioner(loaded, precision=precision)
    squares = [captioner.read(photo(seed), max_pixels=10_000) for seed in range(9)]
    together = captioner.caption(squares)
    for square, candidates in zip(squares, together, strict=True):
        (alone,) = captioner.caption([square])
        assert [each.text for each in alone] == [each.text for each in candidates]
        assert [each.log_prob for each in alone] == [each.log_prob for each in candidates]


def test_the_network_it_was_made_from_stays_as_it_was():
    network = tiny_network()
    before = copy.deepcopy(network.state_dict())
    fused.fused(network, torch.float32)
    after = network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_batch_norms_and_activations_are_gone():
    network = tiny_network()
    kinds = {type(module).__name__ for module in fused.fused(network, torch.float32).modules()}
    assert not kinds & {"BatchNorm2d", "ReLU6"}
    assert "BatchNorm2d" in {type(module).__name__ for module in network.modules()}


def test_without_onednn_the_network_is_taken_as_it_is_and_computes_in_float32(monkeypatch):
    monkeypatch.setattr(fused, "available", lambda: False)
    assert fastest_precision("cpu") == "float32"
    loaded = tiny_unpublished()
    with pytest.raises(CheckpointError, match="choose float32"):
        Captioner(loaded, precision="bfloat16")
    captioner = Captioner(loaded)
    assert captioner.network is loaded.network
    square = captioner.read(photo(), max_pixels=10_000)
    assert captioner.caption([square])[0][0].text


def test_a_precision_that_the_cpu_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(fused, "computes", lambda dtype: dtype == torch.float32)
    with pytest.raises(CheckpointError, match="choose float32"):
        Captioner(tiny_unpublished(), precision="bfloat16")
    Captioner(tiny_unpublished())  # float32 it has
