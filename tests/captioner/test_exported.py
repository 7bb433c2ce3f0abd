"""An encoder that ONNX Runtime computes; what it gives is compared in test_fused.py."""

import multiprocessing
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from app.captioner import fused
from app.captioner.errors import OutOfMemory
from app.captioner.exported import Unknown, exported_encoder
from app.captioner.network import Architecture, Encoder


def made(encoder="mobilenet_v2"):
    torch.manual_seed(0)
    architecture = Architecture(encoder=encoder, features="grid", decoder="merge", words=8)
    return Encoder(architecture).eval()


class MoreByOne(nn.Module):
    def forward(self, maps):
        return maps + 1


def images(count, side_px=64):
    generator = torch.Generator().manual_seed(1)
    size = (count, 3, side_px, side_px)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


@pytest.fixture
def cores():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@torch.inference_mode()
def test_an_image_is_the_same_bit_by_bit_in_any_company_on_any_cores(cores):
    encoder = exported_encoder(made())
    cores(1)
    together = encoder(images(8, 224))
    for count in (1, 2):
        cores(count)
        for n in range(8):
            assert torch.equal(encoder(images(8, 224)[n : n + 1])[0], together[n])


@pytest.mark.skipif(not fused.available(), reason="torch without oneDNN")
@torch.inference_mode()
def test_what_it_does_not_know_is_left_to_onednn():
    with pytest.raises(Unknown):
        exported_encoder(made("convnext_tiny"))
    assert fused._fastest_encoder(made("convnext_tiny"), torch.float32)(images(1)).isfinite().all()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.MaxPool2d(2, dilation=2),
        nn.AdaptiveAvgPool2d(7),
        nn.Flatten(2),
        nn.ELU(),
        MoreByOne(),
    ],
)
def test_a_layer_that_it_would_get_wrong_is_unknown(layer):
    encoder = made()
    encoder.blocks = nn.Sequential(layer)
    with pytest.raises(Unknown):
        exported_encoder(encoder)


PAGES = Path("/proc/self/statm")


def _fill(answers):
    encoder, batch = exported_encoder(made()), images(8, 224)
    with torch.inference_mode():
        torch.set_num_threads(1)
        encoder(batch[:1])
        taken = int(PAGES.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 40_000_000,) * 2)
        try:
            encoder(batch)
        except OutOfMemory:
            answers.send(encoder(batch[:1]).shape)
        else:
            answers.send("there was room")


@pytest.mark.skipif(not PAGES.exists(), reason="a system that does not tell what is taken")
def test_a_batch_that_does_not_fit_says_so_and_a_smaller_one_still_does():
    answers, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_fill, args=(theirs,))
    process.start()
    theirs.close()
    assert answers.recv() == (1, 49, 1280)
    process.join()
