import pytest
import torch

from app.captioner.architecture import Architecture
from app.captioner.model.frames import READERS
from app.captioner.model.lstm import lstm_step
from support.tiny import tiny_network


def reader(frames, decoder="attention"):
    torch.manual_seed(1)
    about = Architecture(
        encoder="mobilenet_v2",
        features="grid",
        decoder=decoder,
        words=9,
        hidden_width=6,
        frames=frames,
        frames_per_clip=5,
    )
    return READERS[frames](about, 8).eval()


def clips(*, regions=4):
    return torch.randn(2, 5, regions, 8, generator=torch.Generator().manual_seed(2))


def test_the_mean_keeps_regions_and_no_order():
    features_BFRD = clips(regions=49)
    read_BRD = reader("mean")(features_BFRD)
    torch.testing.assert_close(read_BRD, features_BFRD.mean(1))
    torch.testing.assert_close(reader("mean")(features_BFRD.flip(1)), read_BRD)


@pytest.mark.parametrize(("decoder", "states"), [("attention", 5), ("merge", 1), ("inject", 1)])
def test_an_lstm_reads_frames_in_their_order(decoder, states):
    read = reader("lstm", decoder)
    forwards, backwards = read(clips()), read(clips().flip(1))
    assert forwards.shape == (2, states, 6)
    assert (forwards - backwards).abs().max() > 0.01


def test_a_state_knows_the_frames_before_it_and_none_after():
    read, changed = reader("lstm"), clips()
    changed[:, 3] *= -1
    before, after = read(clips()), read(changed)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert (after[:, 3:] - before[:, 3:]).abs().amax((0, 2)).min() > 0.001


def test_the_step_is_that_of_an_lstm_cell():
    cell = torch.nn.LSTMCell(3, 6)
    inputs, hidden, before = torch.randn(4, 3), torch.randn(4, 6), torch.randn(4, 6)
    gates = inputs @ cell.weight_ih.T + cell.bias_ih + hidden @ cell.weight_hh.T + cell.bias_hh
    enter, forget, candidate, leave = gates.chunk(4, -1)
    ours = lstm_step(torch.cat((enter, forget, leave, candidate), -1), before, 6)
    for found, expected in zip(ours, cell(inputs, (hidden, before)), strict=False):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("decoder", ["merge", "inject", "attention"])
def test_gradients_of_captions_reach_every_weight_of_the_reader(decoder):
    network = tiny_network(decoder, frames="lstm", frames_per_clip=3).train()
    images = torch.randint(0, 256, (2, 3, 3, 64, 64), dtype=torch.uint8)
    network(images, torch.tensor([[[1, 4, 5]], [[1, 5, 4]]])).square().sum().backward()
    for name, parameter in network.decoder.reader.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"frames_per_clip": 4}, "set frames too"),
        ({"frames": "lstm", "classes": True}, "leave out classes, or frames"),
        ({"frames": "lstm", "frames_per_clip": 1}, "greater than or equal to 2"),
    ],
)
def test_what_no_network_of_clips_is(changes, reason):
    with pytest.raises(ValueError, match=reason):
        tiny_network(**changes)


def test_eight_frames_are_read_unless_said():
    assert tiny_network(frames="mean").architecture.frames_per_clip == 8
