"""What a GPU decodes is what libjpeg decodes; what needs no GPU is proved with a stand-in."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from app.captioner import image
from app.captioner.errors import CheckpointError, ImageTooLarge, UndecodableImage
from app.captioner.pipeline import Captioner
from tiny import tiny_unpublished

HERE = torch.device("cpu")
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICES = [pytest.param("cpu", id="stand-in"), pytest.param("cuda", marks=GPU)]
CLOSE = 20  # of 255, in one pixel after resizing; an H100 was off by up to 19


@pytest.fixture
def decoded(monkeypatch):
    """Note what reaches nvJPEG; without a GPU, libjpeg decodes it at its full size."""
    seen, original = [], image._by_nvjpeg

    def by_nvjpeg(pixels, gpu):
        seen.append(pixels)
        if gpu.type == "cuda":
            return original(pixels, gpu)
        return pil_to_tensor(Image.open(io.BytesIO(pixels)).convert("RGB"))

    monkeypatch.setattr(image, "_by_nvjpeg", by_nvjpeg)
    return seen


def clouds(width, height):
    """Draw colours that change as slowly as a photo's."""
    coarse = np.random.default_rng(7).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def saved(drawn, **options):
    file = io.BytesIO()
    drawn.save(file, "JPEG", **options)
    return file.getvalue()


def square(data, gpu, how="squeeze"):
    pixels = image.decode(data, at_least_px=64, max_pixels=4_000_000, gpu=gpu)
    return image.fit(pixels, size_px=64, how=how).cpu()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(clouds(300, 200), exif=exif)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("how", ["squeeze", "crop", "pad"])
@pytest.mark.parametrize(
    "data",
    [
        *(pytest.param(turned(n), id=f"orientation {n}") for n in range(1, 9)),
        *(pytest.param(saved(clouds(w, h)), id=f"{w} x {h}") for w, h in [(1024, 700), (2000, 66)]),
        pytest.param(saved(clouds(300, 200).convert("L")), id="grey"),
        pytest.param(saved(clouds(300, 200), progressive=True), id="progressive"),
        pytest.param(saved(clouds(300, 200), subsampling=0), id="no subsampling"),
        pytest.param(saved(clouds(3, 2)), id="tiny"),
    ],
)
def test_pixels_are_those_of_libjpeg(decoded, data, how, device):
    ours, theirs = square(data, None, how).int(), square(data, torch.device(device), how).int()
    assert (ours - theirs).abs().max() <= CLOSE
    assert len(decoded) == 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(saved(clouds(300, 200).convert("CMYK")), id="CMYK"),
        pytest.param(saved(clouds(300, 200), keep_rgb=True), id="stored as RGB"),
    ],
)
def test_other_colours_are_left_to_libjpeg(decoded, data, device):
    assert torch.equal(square(data, None), square(data, torch.device(device)))
    assert decoded == []


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_photo_that_ends_too_early_is_refused_all_the_same(kept, device):
    data = saved(clouds(300, 200))
    with pytest.raises(UndecodableImage):
        square(data[: int(len(data) * kept)], torch.device(device))


@pytest.mark.parametrize("device", DEVICES)
def test_a_photo_too_large_never_reaches_the_gpu(decoded, device):
    with pytest.raises(ImageTooLarge):
        image.decode(
            saved(clouds(300, 200)), at_least_px=64, max_pixels=100, gpu=torch.device(device)
        )
    assert decoded == []


def test_what_nvjpeg_cannot_decode_libjpeg_does(monkeypatch):
    def refuse(*_):
        raise RuntimeError("nvjpeg decode failed: 5")

    data = saved(clouds(300, 200))
    monkeypatch.setattr(image, "_by_nvjpeg", refuse)
    assert torch.equal(square(data, None), square(data, HERE))


@pytest.mark.parametrize("device", DEVICES)
def test_a_captioner_reads_with_it(decoded, device):
    captioner = Captioner(tiny_unpublished(), device=device, nvjpeg=True)
    pixels = captioner.read(saved(clouds(300, 200)), max_pixels=100_000)
    assert (pixels.device.type, pixels.dtype, pixels.is_contiguous()) == ("cpu", torch.uint8, True)
    assert len(decoded) == (2 if device == "cuda" else 0)  # a first one at load; a CPU has none


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_scales_down_by_more_than_it_can_at_once(decoded):
    data = saved(clouds(3000, 70))
    ours, theirs = square(data, None).int(), square(data, torch.device("cuda")).int()
    assert (ours - theirs).abs().max() <= CLOSE
    assert len(decoded) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_without_nvjpeg_a_captioner_that_should_use_it_is_refused(monkeypatch):
    def missing(*_):
        raise RuntimeError("not compiled with nvjpeg")

    monkeypatch.setattr(image, "_by_nvjpeg", missing)
    with pytest.raises(CheckpointError, match="decodes no JPEGs: not compiled"):
        Captioner(tiny_unpublished(), device="cuda", nvjpeg=True)
