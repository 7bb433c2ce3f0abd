"""Every honest format gives the right pixels, everything else gives an ImageError."""

import gzip
import io
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.captioner.errors import (
    ImageError,
    ImageTooLarge,
    TooCostly,
    UndecodableImage,
    UnsupportedImage,
)
from app.captioner.image.decode import cost
from app.captioner.image.fit import fit, is_one_colour
from app.captioner.image.formats import ends_early
from support.drawn import MAX_PIXELS, photo, read, saved

WHITE = (255, 255, 255)


def pixel(image_HWC, x, y):
    return tuple(image_HWC[y, x].tolist())


def close(left_HWC, right_HWC, within):
    if left_HWC.shape != right_HWC.shape:
        return False
    return bool((np.abs(left_HWC.astype(int) - right_HWC) <= within).all())


def chunk(name, body=b""):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width, height, depth, colour, rows, *before):
    """A PNG written by hand: what Pillow's own writer would refuse."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + body + chunk(b"IEND")


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def with_segments(jpeg, *segments):
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def exif_bytes(orientation, order=">"):
    mark = b"MM" if order == ">" else b"II"
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return (
        b"Exif\0\0"
        + mark
        + struct.pack(order + "HIH", 42, 8, 1)
        + entry
        + struct.pack(order + "I", 0)
    )


JPEG = saved(photo(), "JPEG", quality=95)
PROGRESSIVE = saved(photo(), "JPEG", quality=95, progressive=True)
PNG = saved(photo(), "PNG")
WEBP = saved(photo(), "WEBP", quality=95)
LOSSLESS = saved(photo(), "WEBP", lossless=True)


class TestModes:
    @pytest.mark.parametrize("data", [PNG, LOSSLESS], ids=["png", "webp"])
    def test_a_lossless_file_keeps_every_pixel(self, data):
        assert np.array_equal(read(data), np.asarray(photo()))

    @pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, WEBP], ids=["jpeg", "progressive", "webp"])
    def test_a_lossy_file_is_close(self, data):
        assert close(read(data), np.asarray(photo()), within=12)

    def test_the_result_is_uint8_rgb(self):
        image_HWC = read(PNG)
        assert image_HWC.dtype == np.uint8
        assert image_HWC.shape == (32, 48, 3)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_grey_is_repeated_over_three_channels(self, kind):
        image_HWC = read(saved(Image.new("L", (9, 7), 100), kind))
        assert close(image_HWC, np.full((7, 9, 3), 100), within=2)

    def test_one_bit_images_are_black_and_white(self):
        image = Image.new("1", (4, 2))
        image.putpixel((1, 0), 1)
        assert pixel(read(saved(image, "PNG")), 1, 0) == WHITE
        assert pixel(read(saved(image, "PNG")), 0, 0) == (0, 0, 0)

    @pytest.mark.parametrize(("mode", "colour"), [("LA", (0, 0)), ("RGBA", (200, 0, 0, 0))])
    def test_transparent_pixels_are_white(self, mode, colour):
        assert pixel(read(saved(Image.new(mode, (3, 3), colour), "PNG")), 1, 1) == WHITE

    def test_half_transparent_pixels_are_half_white(self):
        data = saved(Image.new("RGBA", (3, 3), (200, 0, 0, 128)), "PNG")
        assert pixel(read(data), 1, 1) == (227, 127, 127)

    def test_webp_alpha_is_composited_on_white(self):
        data = saved(Image.new("RGBA", (3, 3), (200, 0, 0, 0)), "WEBP", lossless=True)
        assert pixel(read(data), 1, 1) == WHITE

    def test_a_palette_keeps_its_colours(self):
        palette = photo().quantize(16)
        assert np.array_equal(read(saved(palette, "PNG")), np.asarray(palette.convert("RGB")))

    @pytest.mark.parametrize("transparency", [0, bytes([0, 255])], ids=["index", "table"])
    def test_a_transparent_palette_entry_is_white(self, transparency):
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putpixel((1, 0), 1)
        image_HWC = read(saved(image, "PNG", transparency=transparency))
        assert pixel(image_HWC, 0, 0) == WHITE
        assert pixel(image_HWC, 1, 0) == (40, 50, 60)

    @pytest.mark.parametrize(("mode", "key"), [("L", 7), ("RGB", (7, 7, 7))])
    def test_a_transparent_colour_is_white(self, mode, key):
        data = saved(Image.new(mode, (2, 2), key), "PNG", transparency=key)
        assert pixel(read(data), 0, 0) == WHITE

    def test_cmyk_is_converted(self):
        data = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
        assert close(read(data)[:1, :1], np.array([[[254, 0, 0]]]), within=3)

    def test_16_bit_grey_is_scaled_not_clipped(self):
        ramp = np.array([[0, 256, 0x8000, 0xFFFF]], dtype=np.uint16)
        assert read(saved(Image.fromarray(ramp), "PNG"))[..., 0].tolist() == [[0, 1, 128, 255]]

    def test_16_bit_grey_can_have_a_transparent_value(self):
        rows = b"\0" + struct.pack(">HH", 0x1234, 0x4000)
        data = png(2, 1, 16, 0, rows, chunk(b"tRNS", struct.pack(">H", 0x1234)))
        assert read(data)[..., 0].tolist() == [[255, 0x40]]

    def test_16_bit_colour_is_scaled(self):
        rows = b"\0" + struct.pack(">HHH", 0xFFFF, 0x8000, 0x0100)
        assert pixel(read(png(1, 1, 16, 2, rows)), 0, 0) == (255, 128, 1)

    def test_16_bit_grey_with_alpha_is_composited(self):
        rows = b"\0" + struct.pack(">HH", 0x0000, 0x0000)
        assert pixel(read(png(1, 1, 16, 4, rows)), 0, 0) == WHITE

    @pytest.mark.parametrize("kind", ["PNG", "WEBP"])
    def test_an_animation_gives_its_first_frame(self, kind):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert pixel(read(data), 4, 4) == (255, 0, 0)

    def test_a_jpeg_with_a_second_picture_inside_gives_the_first(self):
        other = photo().rotate(180)
        data = saved(photo(), "MPO", save_all=True, append_images=[other], quality=95)
        assert close(read(data), np.asarray(photo()), within=12)


TURNED = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.rotate(180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.rotate(-90, expand=True),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.rotate(90, expand=True),
}


class TestOrientation:
    @pytest.mark.parametrize("order", ["<", ">"], ids=["intel", "motorola"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_every_exif_orientation_is_undone(self, orientation, order):
        expected = np.asarray(TURNED[orientation](photo()))
        exif = exif_bytes(orientation, order)
        assert np.array_equal(read(saved(photo(), "PNG", exif=exif)), expected)
        assert close(read(saved(photo(), "JPEG", quality=95, exif=exif)), expected, within=12)
        assert np.array_equal(read(saved(photo(), "WEBP", lossless=True, exif=exif)), expected)

    @pytest.mark.parametrize("orientation", [0, 9, 65535])
    def test_an_orientation_that_does_not_exist_is_ignored(self, orientation):
        data = saved(photo(), "PNG", exif=exif_bytes(orientation))
        assert np.array_equal(read(data), np.asarray(photo()))

    @pytest.mark.parametrize(
        "exif",
        [
            b"",
            b"II",
            b"MM\0\x2a\xff\xff\xff\xff",
            b"II\x2a\0\x08\0\0\0\xff\xff",
            b"II\x2a\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 40_000,
            b"\xff" * 60_000,
            b"MM\0\x2a\0\0\0\x08" + b"\xff\xff" + struct.pack(">HHII", 0x9286, 7, 2**31, 8) * 5000,
        ],
        ids=["empty", "cut", "far", "no entries", "same entry", "noise", "bomb"],
    )
    @pytest.mark.parametrize("base", [JPEG, PNG], ids=["jpeg", "png"])
    def test_broken_exif_is_ignored(self, base, exif):
        if base is JPEG:
            data = with_segments(JPEG, segment(0xE1, b"Exif\0\0" + exif[:65_000]))
        else:
            data = PNG[:33] + chunk(b"eXIf", exif) + PNG[33:]
        assert np.array_equal(read(data), read(base))

    def test_the_orientation_survives_draft_decoding(self):
        data = saved(photo(800, 600), "JPEG", exif=exif_bytes(6))
        assert read(data, at_least_px=200).shape == (400, 300, 3)


class TestDraft:
    @pytest.mark.parametrize(
        ("size", "at_least_px", "shape"),
        [
            ((1600, 1200), 224, (300, 400, 3)),
            ((1600, 1200), 150, (150, 200, 3)),
            ((1600, 1200), 1200, (1200, 1600, 3)),
            ((1600, 400), 224, (400, 1600, 3)),
            ((100, 80), 224, (80, 100, 3)),
            ((455, 449), 224, (225, 228, 3)),
        ],
    )
    def test_a_large_jpeg_comes_back_smaller(self, size, at_least_px, shape):
        assert read(saved(photo(*size), "JPEG"), at_least_px=at_least_px).shape == shape

    def test_a_smaller_copy_looks_the_same(self):
        large = photo(1600, 1200)
        small_HWC = read(saved(large, "JPEG", quality=95), at_least_px=300)
        assert close(small_HWC, np.asarray(large.reduce(4)), within=6)

    def test_other_formats_keep_their_size(self):
        assert read(saved(photo(800, 600), "PNG"), at_least_px=10).shape == (600, 800, 3)

    def test_the_pixel_limit_is_checked_before_the_draft(self):
        with pytest.raises(ImageTooLarge):
            read(saved(photo(800, 600), "PNG"), at_least_px=10, max_pixels=479_999)

    @pytest.mark.parametrize("progressive", [False, True])
    def test_a_jpeg_in_one_scan_may_have_six_times_as_many_pixels(self, progressive):
        """It is scaled down while it is decoded; one in many scans is held whole."""
        data = saved(photo(800, 600), "JPEG", progressive=progressive)
        if progressive:
            with pytest.raises(ImageTooLarge) as caught:
                read(data, at_least_px=10, max_pixels=80_000)
            assert caught.value.limit == 80_000
        else:
            assert read(data, at_least_px=10, max_pixels=80_000).shape == (75, 100, 3)
            with pytest.raises(ImageTooLarge) as caught:
                read(data, at_least_px=10, max_pixels=79_999)
            assert caught.value.limit == 6 * 79_999

    def test_what_is_left_after_the_draft_is_within_the_limit_too(self):
        with pytest.raises(ImageTooLarge):
            read(saved(photo(800, 600), "JPEG"), at_least_px=599, max_pixels=80_000)

    @pytest.mark.parametrize("size", [(8000, 6000), (12_000, 9000), (21_000, 2800)])
    def test_what_phones_take_is_read(self, size):
        data = saved(photo(40, 30).resize(size), "JPEG", quality=50)
        image_HWC = read(data, at_least_px=224, max_pixels=40_000_000)
        assert min(image_HWC.shape[:2]) >= 224


def many_scans(width, height, scans, marker):
    """A progressive JPEG of three components without content: each scan walks over all of it."""
    components = b"".join(bytes([n, 0x11, 0]) for n in (1, 2, 3))
    frame = segment(marker, struct.pack(">BHHB", 8, height, width, 3) + components)
    table = segment(0xC4, b"\0\1" + bytes(15) + b"\0") + segment(
        0xC4, b"\x10\1" + bytes(15) + b"\0"
    )
    first = segment(0xDA, b"\3\1\0\2\0\3\0" + b"\0\0\x0d") + bytes(4500)
    more = [
        segment(0xDA, bytes([1, n % 3 + 1, 0, 1, 63, (14 - n // 3) << 4 if n > 2 else 0]))
        for n in range(scans - 1)
    ]
    more = [head[:-1] + bytes([head[-1] | 13 - n // 3]) + bytes(80) for n, head in enumerate(more)]
    tables = segment(0xDB, b"\0" + b"\1" * 64) + (b"" if marker == 0xCA else table)
    return b"\xff\xd8" + tables + frame + first + b"".join(more) + b"\xff\xd9"


def animated(frames):
    """A WebP of so many frames, all alike."""
    pair = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    data = saved(pair[0], "WEBP", save_all=True, append_images=pair[1:], lossless=True)
    at = data.rindex(b"ANMF")
    body = data[12:] + data[at:] * (frames - 2)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def webp_with(chunks):
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\x2f\0\0" + b"\x1f\0\0"
    body += chunks + LOSSLESS[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


CROWD = 2 * 10**6
CROWDED = {
    "jpeg, empty segments": with_segments(JPEG, b"\xff\xe0\0\2" * CROWD),
    "jpeg, empty tables": with_segments(JPEG, b"\xff\xdb\0\2" * CROWD),
    "jpeg, fill": with_segments(JPEG, b"\xff" * 8 * CROWD),
    "jpeg, fill in pieces": with_segments(JPEG, (b"\xff" * 4000 + b"\xd0") * (CROWD // 500)),
    "jpeg, bare markers": with_segments(JPEG, b"\xff\xd0" * 4 * CROWD),
    "jpeg, stuffing": with_segments(JPEG, b"\xff\0" * 4 * CROWD),
    "jpeg, restarts in a scan": PROGRESSIVE[:-2] + b"\xff\xd0" * 4 * CROWD + b"\xff\xd9",
    "jpeg, tables between scans": PROGRESSIVE[:-2] + b"\xff\xdb\0\2" * CROWD + b"\xff\xd9",
    "jpeg, tables after the scan": JPEG[:-2] + b"\xff\xdb\0\2" * CROWD + b"\xff\xd9",
    "png, unknown chunks": PNG[:33] + chunk(b"abCd") * CROWD + PNG[33:],
    "png, empty pixels": PNG[:33] + chunk(b"IDAT") * CROWD + PNG[33:],
    "png, palettes": PNG[:33] + chunk(b"PLTE", b"abc") * CROWD + PNG[33:],
    "webp, unknown chunks": webp_with((b"abcd" + bytes(4)) * CROWD),
    "webp, frames": animated(CROWD // 10),
}


def cpu_s(work):
    started_s = time.thread_time()
    work()
    return time.thread_time() - started_s


@pytest.fixture(scope="module")
def honest_s():
    """CPU seconds of one picture of 3.6 megapixels, in the same run."""
    data = saved(photo(1900, 1900), "PNG")
    return min(cpu_s(lambda: read(data)) for _ in range(5))


class TestLimits:
    @pytest.mark.parametrize("data", [JPEG, PNG, WEBP, LOSSLESS])
    def test_the_limit_itself_is_allowed(self, data):
        assert read(data, max_pixels=48 * 32).shape == (32, 48, 3)

    @pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, PNG, WEBP, LOSSLESS])
    def test_one_pixel_more_is_too_large(self, data):
        with pytest.raises(ImageTooLarge, match="more pixels"):
            read(data, max_pixels=48 * 32 - 1)

    @pytest.mark.parametrize("max_pixels", [MAX_PIXELS, 10**12])
    @pytest.mark.parametrize("side", [9_500, 14_000, 50_000, 2**31 - 1])
    def test_a_bomb_is_too_large_even_where_our_limit_is_wide(self, side, max_pixels):
        data = png(side, side, 8, 2, bytes(1000))
        with pytest.raises(ImageError) as caught:
            read(data, max_pixels=max_pixels)
        assert type(caught.value) is ImageTooLarge

    @pytest.mark.parametrize(
        "data",
        [JPEG[:-300], png(48, 32, 8, 2, bytes(100)), WEBP[:30], LOSSLESS[:25]],
        ids=["jpeg", "png", "webp", "lossless"],
    )
    def test_the_header_is_enough_to_refuse(self, data):
        """Decoding would fail: there are too few pixels behind it."""
        with pytest.raises(ImageTooLarge):
            read(data, max_pixels=48 * 32 - 1)
        with pytest.raises(UndecodableImage):
            read(data)

    def test_a_webp_bomb_is_refused_before_its_canvas_is_allocated(self):
        canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\0" + b"\xff\xff\0"
        data = b"RIFF" + struct.pack("<I", len(canvas) + 4) + b"WEBP" + canvas
        with pytest.raises(ImageTooLarge):
            read(data)

    @pytest.mark.parametrize("progressive", [True, False])
    def test_thousands_of_scans_cost_less_than_ten_honest_pictures(self, progressive):
        grey = saved(Image.new("L", (1900, 1900)), "JPEG", progressive=progressive)
        empty_scan = grey[(at := grey.rindex(b"\xff\xda")) : at + 10]
        started_s = time.thread_time()
        for _ in range(10):
            read(grey)
        honest_s = time.thread_time() - started_s
        with pytest.raises(UndecodableImage):
            read(grey[:-2] + empty_scan * 5000 + grey[-2:])
        assert time.thread_time() - started_s < 2 * honest_s

    @pytest.mark.parametrize("walks", [21, 6])
    def test_scans_of_large_pictures_are_counted_with_their_pixels(self, walks):
        """Beside the limit on scans: forty megapixels may not be walked over fifty times."""
        marker = 0xCA if walks == 6 else 0xC2  # arithmetic code, whose walks count four times
        limit = 2600 * 2600
        with pytest.raises(TooCostly, match="longer to decode"):
            read(many_scans(2600, 2600, walks, marker), max_pixels=limit)
        few = many_scans(2600, 2600, 3, marker)
        assert read(few, max_pixels=limit, at_least_px=325).shape == (325, 325, 3)

    @pytest.mark.parametrize("lossless", [True, False])
    def test_declared_pixels_are_held_against_the_bytes_of_a_webp(self, lossless):
        data = saved(Image.new("RGB", (3100, 3100)), "WEBP", lossless=lossless, method=0)
        if lossless:
            with pytest.raises(TooCostly):
                read(data, max_pixels=40_000_000)
        else:  # each square of pixels has a byte
            assert read(data, max_pixels=40_000_000, at_least_px=100).shape == (207, 207, 3)

    def test_metadata_does_not_count_as_bytes_of_the_picture(self):
        flat = saved(
            Image.new("RGB", (3100, 3100)), "WEBP", lossless=True, method=0, exif=bytes(60_000)
        )
        with pytest.raises(TooCostly):
            read(flat, max_pixels=40_000_000)

    def test_declared_pixels_are_held_against_the_bytes_of_a_jpeg(self):
        """Its pixels are missing: libjpeg would make them up, grey."""
        data = saved(Image.new("L", (16, 16)), "JPEG")
        at = data.index(b"\xff\xc0") + 5
        wide = data[:at] + struct.pack(">HH", 4000, 4000) + data[at + 4 :]
        with pytest.raises(TooCostly):
            read(wide, max_pixels=40_000_000)

    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
    def test_a_blank_page_and_a_blank_screen_are_read(self, kind):
        for size in ((2480, 3508), (3840, 2160)):
            data = saved(
                Image.new("L", size, 255), kind, **({"lossless": True} if kind == "WEBP" else {})
            )
            image_HWC = read(data, max_pixels=40_000_000, at_least_px=224)
            assert bool((image_HWC == 255).all())

    def test_a_blank_page_at_twice_the_resolution_is_read(self):
        data = saved(Image.new("1", (4960, 7016), 1), "PNG")
        assert bool((read(data, max_pixels=40_000_000, at_least_px=224) == 255).all())

    @pytest.mark.parametrize("size", [(1, 65_536), (65_536, 1)])
    def test_a_side_longer_than_a_jpeg_can_have_is_too_large(self, size):
        """Each row of pixels takes memory of its own, however short it is."""
        width, height = size
        with pytest.raises(ImageTooLarge):
            read(png(width, height, 1, 0, bytes((width + 15) // 8 * height)))

    @pytest.mark.parametrize("data", CROWDED.values(), ids=CROWDED)
    def test_a_crowd_of_parts_costs_less_than_ten_honest_pictures(self, data, honest_s):
        assert cpu_s(lambda: answers(data)) < 10 * honest_s

    @pytest.mark.parametrize("data", CROWDED.values(), ids=CROWDED)
    def test_a_cost_is_told_in_less_time_than_an_honest_picture(self, data, honest_s):
        assert cpu_s(lambda: cost(data)) < honest_s

    @pytest.mark.parametrize("cover", [segment(0xFE, b"\xff\xd9"), b"\xff\x01"])
    def test_scans_cannot_hide_behind_another_marker(self, cover):
        scan = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
        with pytest.raises(UndecodableImage):
            read(PROGRESSIVE[:-2] + (cover + scan) * 100 + b"\xff\xd9")

    def test_scans_cannot_hide_behind_a_second_frame(self):
        sequential = JPEG.index(b"\xff\xc0"), JPEG.index(b"\xff\xc4")
        scan = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
        at = PROGRESSIVE.index(b"\xff\xc2")
        two_frames = PROGRESSIVE[:at] + JPEG[slice(*sequential)] + PROGRESSIVE[at:]
        with pytest.raises(UndecodableImage):
            read(two_frames[:-2] + scan * 100 + b"\xff\xd9")

    def test_markers_after_the_end_of_the_picture_are_not_scans(self):
        assert np.array_equal(read(PROGRESSIVE + b"\xff\xda\0\x02" * 1000), read(PROGRESSIVE))

    def test_a_metadata_bomb_costs_nothing(self):
        text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**6)))
        assert np.array_equal(read(PNG[:33] + text * 200 + PNG[33:]), read(PNG))


def corrupted(data, at, by=0xFF):
    return data[:at] + bytes([data[at] ^ by]) + data[at + 1 :]


UNSUPPORTED = {
    "one byte": b"\xff",
    "half a jpeg magic": b"\xff\xd8",
    "half a png magic": PNG[:7],
    "riff without webp": b"RIFF\x10\0\0\0WAVEfmt ",
    "riff alone": b"RIFF",
    "text": b"hello, I am a photo",
    "html": b"<html><body>404</body></html>",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><rect/></svg>",
    "json": b'{"image": null}',
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "gzip of a jpeg": gzip.compress(JPEG),
    "zlib of a png": zlib.compress(PNG),
    "base64": b"/9j/4AAQSkZJRgABAQAAAQABAAD/2wBD",
    "ico": saved(photo(), "ICO"),
    "ppm": saved(photo(), "PPM"),
    "eps": saved(photo(), "EPS"),
    "pdf": saved(photo(), "PDF"),
    "tga": saved(photo(), "TGA"),
    "psd magic": b"8BPS\0\x01" + bytes(100),
    "jpeg 2000 magic": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
    "video": b"\0\0\0\x18ftypisom" + bytes(100),
    "postscript": b"%!PS-Adobe-3.0",
    "big tiff": b"II+\0\x08\0\0\0" + bytes(100),
    "jpeg xl magic": b"\xff\x0a" + bytes(100),
    "bitmap of no known head": b"BM" + bytes(100),
    "zip": b"PK\x03\x04" + bytes(100),
    "elf": b"\x7fELF" + bytes(100),
    "jpeg after a newline": b"\n" + JPEG,
    "png after a byte order mark": b"\xef\xbb\xbf" + PNG,
    "zip that ends as a png": b"PK\x03\x04" + PNG,
    "png with text line ends": PNG.replace(b"\r\n", b"\n"),
    "jpeg without its first byte": JPEG[1:],
}

UNDECODABLE = {
    "jpeg magic alone": b"\xff\xd8\xff",
    "jpeg magic and text": b"\xff\xd8\xff hello",
    "jpeg of start and end": b"\xff\xd8\xff\xd9",
    "jpeg of fill bytes": b"\xff\xd8" + b"\xff" * 5000,
    "jpeg header with png body": b"\xff\xd8\xff" + PNG,
    "jpeg without a scan": JPEG[: JPEG.index(b"\xff\xda")] + b"\xff\xd9",
    "jpeg without tables": JPEG.replace(b"\xff\xdb", b"\xff\xfe").replace(b"\xff\xc4", b"\xff\xfe"),
    "jpeg of no height": JPEG.replace(struct.pack(">HH", 32, 48), struct.pack(">HH", 0, 48)),
    "jpeg of no width": JPEG.replace(struct.pack(">HH", 32, 48), struct.pack(">HH", 32, 0)),
    "jpeg of 12 bits": JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
    "jpeg of two layers": JPEG.replace(
        struct.pack(">HHB", 32, 48, 3), struct.pack(">HHB", 32, 48, 2)
    ),
    "jpeg with an endless segment": JPEG[:2] + b"\xff\xe1\xff\xff" + JPEG[2:],
    "png magic alone": PNG[:8],
    "png magic and text": PNG[:8] + b"hello, I am a photo, believe me",
    "png magic and jpeg": PNG[:8] + JPEG,
    "png of no width": png(0, 5, 8, 2, b""),
    "png of no height": png(5, 0, 8, 2, b""),
    "png of no size": png(0, 0, 8, 2, b""),
    "png of 3 bits": png(2, 2, 3, 2, bytes(20)),
    "png of colour type 7": png(2, 2, 8, 7, bytes(20)),
    "png without data": PNG[:33] + chunk(b"IEND"),
    "png without header": PNG[:8] + PNG[33:],
    "png with a wrong header checksum": corrupted(PNG, 30),
    "png with rotten data": PNG[:33] + chunk(b"IDAT", b"rotten") + chunk(b"IEND"),
    "png with an endless chunk": PNG[:33] + b"\x7f\xff\xff\xffIDAT" + PNG[41:],
    "png with too few rows": png(64, 64, 8, 2, bytes(100)),
    "png with a short header": PNG[:8] + chunk(b"IHDR", b"\0\0") + PNG[33:],
    "png with an unknown filter": png(2, 1, 8, 2, b"\x63" + bytes(6)),
    "palette png with a short transparency": png(2, 1, 8, 2, bytes(7), chunk(b"tRNS", b"\0")),
    "webp header alone": WEBP[:12],
    "webp of an unknown chunk": b"RIFF\x10\0\0\0WEBPVP9 " + bytes(40),
    "webp lossy without data": WEBP[:30],
    "webp lossless without data": LOSSLESS[:25],
    "webp of no size": WEBP[:26] + bytes(4) + WEBP[30:],
    "webp of zeros": WEBP[:20] + bytes(len(WEBP) - 20),
    "webp header with jpeg body": WEBP[:16] + JPEG,
}
TRUNCATED = {
    f"{name} cut at {percent} %": data[: max(12, len(data) * percent // 100)]
    for name, data in [("jpeg", JPEG), ("progressive", PROGRESSIVE), ("png", PNG), ("webp", WEBP)]
    for percent in (2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)
    if percent <= 80 or data not in (JPEG, PROGRESSIVE)  # of which little is missing: TestCutShort
}
STRANGE_BUT_HONEST = {
    "jpeg with a tail of text": JPEG + b"<script>alert(1)</script>",
    "jpeg with a zip behind": JPEG + b"PK\x03\x04" + bytes(1000),
    "jpeg with html in a comment": with_segments(JPEG, segment(0xFE, b"<html>" * 1000)),
    "jpeg with a wrong profile": with_segments(
        JPEG, segment(0xE2, b"ICC_PROFILE\0\x01\x01" + b"\xff" * 5000)
    ),
    "jpeg with a profile of missing parts": with_segments(
        JPEG, segment(0xE2, b"ICC_PROFILE\0\x07\x09x")
    ),
    "jpeg with a broken second picture": with_segments(
        JPEG, segment(0xE2, b"MPF\0II\x2a\0\x08\0\0\0\xff\xff")
    ),
    "jpeg with broken photoshop data": with_segments(
        JPEG, segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed")
    ),
    "jpeg with fill bytes": JPEG[:2] + b"\xff" * 100 + JPEG[2:],
    "jpeg with junk before a segment": JPEG[:20] + b"junk" + JPEG[20:],
    "png with a tail of text": PNG + b"<?php system('id') ?>",
    "png with a wrong profile": PNG[:33] + chunk(b"iCCP", b"x\0\0rotten") + PNG[33:],
    "png with a profile of no compression": PNG[:33] + chunk(b"iCCP", b"x\0\x09y") + PNG[33:],
    "png that claims no frames": PNG[:33] + chunk(b"acTL", bytes(8)) + PNG[33:],
    "png that claims frames twice": PNG[:33] + chunk(b"acTL", b"\0\0\0\x01" * 2) * 2 + PNG[33:],
    "png with a text called transparency": PNG[:33] + chunk(b"tEXt", b"transparency\0x") + PNG[33:],
    "png with a text called bbox": PNG[:33] + chunk(b"tEXt", b"bbox\0x") + PNG[33:],
    "png with an unknown chunk": PNG[:33] + chunk(b"abCd", b"?" * 99) + PNG[33:],
    "png with a jpeg inside": PNG[:33] + chunk(b"prVt", JPEG) + PNG[33:],
    "webp with a tail of text": LOSSLESS + b"hello",
}


class TestCutShort:
    """A JPEG that ends early: phones and messengers cut files."""

    @pytest.mark.parametrize("data", [JPEG, PROGRESSIVE], ids=["in one scan", "progressive"])
    @pytest.mark.parametrize("missing", [1, 2, 3])
    def test_without_its_last_bytes_it_is_what_it_was(self, data, missing):
        assert close(read(data[:-missing])[:-16], np.asarray(photo())[:-16], within=12)
        assert ends_early(data[:-missing])

    def test_a_few_rows_that_are_missing_are_grey(self):
        large = saved(photo(320, 320), "JPEG", quality=95)
        scan = large.index(b"\xff\xda")
        image_HWC = read(large[: scan + (len(large) - scan) * 9 // 10])
        assert close(image_HWC[:256], np.asarray(photo(320, 320))[:256], within=12)
        assert pixel(image_HWC, 319, 319) == (128, 128, 128)

    @pytest.mark.parametrize("progressive", [False, True])
    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    def test_half_of_one_is_undecodable(self, progressive, mode):
        data = saved(photo(320, 320, mode), "JPEG", quality=95, progressive=progressive)
        with pytest.raises(UndecodableImage):
            read(data[: len(data) // 2])

    @pytest.mark.parametrize(
        "data", [JPEG, PROGRESSIVE, PNG, WEBP, b"", b"\xff\xd8\xff", JPEG + b"\0\0", JPEG[:400]]
    )
    def test_what_has_its_end_or_no_picture_does_not_end_early(self, data):
        assert not ends_early(data)

    def test_a_photo_with_a_video_behind_it_does_not_end_early(self):
        assert not ends_early(JPEG + b"\0\0\0\x18ftypmp42" + bytes(4096))


class TestHostile:
    @pytest.mark.parametrize("data", UNSUPPORTED.values(), ids=UNSUPPORTED)
    def test_another_format_is_unsupported(self, data):
        with pytest.raises(UnsupportedImage, match="expected a JPEG, PNG, WebP, GIF"):
            read(data)

    @pytest.mark.parametrize(
        "data", [*UNDECODABLE.values(), *TRUNCATED.values()], ids=[*UNDECODABLE, *TRUNCATED]
    )
    def test_broken_content_is_undecodable(self, data):
        with pytest.raises(UndecodableImage, match="the image is damaged or incomplete") as caught:
            read(data)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None

    @pytest.mark.parametrize("data", STRANGE_BUT_HONEST.values(), ids=STRANGE_BUT_HONEST)
    def test_odd_company_does_not_change_the_pixels(self, data):
        assert close(read(data), np.asarray(photo()), within=12)

    def test_no_bytes_at_all_are_told_so(self):
        with pytest.raises(UndecodableImage, match="the file is empty"):
            read(b"")

    def test_no_message_tells_of_the_machine(self):
        for data in [*UNSUPPORTED.values(), *UNDECODABLE.values()]:
            with pytest.raises(ImageError) as caught:
                read(data)
            assert "0x" not in str(caught.value)

    @pytest.mark.parametrize("data", [JPEG, PNG, WEBP], ids=["jpeg", "png", "webp"])
    def test_every_single_cut_gives_an_answer(self, data):
        for end in range(len(data)):
            answers(data[:end])


def answers(data):
    """Pixels or an ImageError; anything else fails the test."""
    try:
        image_HWC = read(data, max_pixels=1_000_000, at_least_px=64)
    except ImageError:
        return
    assert image_HWC.dtype == np.uint8
    assert image_HWC.shape[2] == 3
    assert fit(image_HWC, size_px=8, how="pad").shape == (8, 8, 3)


class TestAnyBytes:
    @given(st.binary(max_size=300))
    @settings(max_examples=200, deadline=None)
    def test_arbitrary_bytes_give_pixels_or_an_image_error(self, data):
        answers(data)

    @given(st.sampled_from([b"\xff\xd8\xff", PNG[:8], b"RIFF\xff\0\0\0WEBP"]), st.binary())
    @settings(max_examples=200, deadline=None)
    def test_the_right_magic_before_arbitrary_bytes(self, magic, data):
        answers(magic + data)

    @given(
        st.sampled_from([JPEG, PROGRESSIVE, PNG, WEBP, LOSSLESS, png(2, 1, 8, 3, bytes(3))]),
        st.lists(st.tuples(st.integers(0, 5000), st.binary(max_size=4)), max_size=8),
    )
    @settings(max_examples=400, deadline=None)
    def test_mutated_images_give_pixels_or_an_image_error(self, data, edits):
        mutated = bytearray(data)
        for at, patch in edits:
            mutated[at % len(mutated) : at % len(mutated) + len(patch)] = patch
        answers(bytes(mutated))


@pytest.mark.parametrize("how", ["squeeze", "crop", "pad"])
@pytest.mark.parametrize("colour", [(0, 0, 0), (117, 117, 117), (255, 0, 9)])
def test_a_plain_image_is_told_from_one_with_a_speck(how, colour):
    pixels = np.full((300, 400, 3), colour, np.uint8)
    assert is_one_colour(fit(pixels, size_px=224, how=how), how)
    pixels[140:160, 190:210] = 128, 255, 0
    assert not is_one_colour(fit(pixels, size_px=224, how=how), how)


def test_the_decoder_knows_no_torch():
    program = "import sys, app.captioner.image.decode; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


class TestThreads:
    def test_many_threads_decode_alike(self):
        alone = [read(data) for data in (JPEG, PNG, WEBP)]
        start = threading.Barrier(8)

        def work(number):
            start.wait()
            return number % 3, read((JPEG, PNG, WEBP)[number % 3])

        with ThreadPoolExecutor(8) as pool:
            for which, image_HWC in pool.map(work, range(8)):
                assert np.array_equal(image_HWC, alone[which])

    def test_pillow_keeps_its_settings(self):
        before = Image.MAX_IMAGE_PIXELS
        read(PNG, max_pixels=10**12)
        assert before == Image.MAX_IMAGE_PIXELS

    def test_a_large_jpeg_is_decoded_in_one_go(self, monkeypatch):
        """Between two pieces a decoder waits for Python's lock, as long as others want it too."""

        class Watched(io.BytesIO):
            def read(self, size=-1):
                data = super().read(size)
                reads.append(len(data))
                return data

        reads = []
        noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
        data = saved(Image.fromarray(noise), "JPEG", quality=95)
        monkeypatch.setattr(io, "BytesIO", Watched)
        read(data)
        assert len(data) > 2 * 2**16
        assert max(reads) > len(data) - 1000
        assert sum(size > 1000 for size in reads) == 1


# Not ru_maxrss: a process begins with that of the one it was started from.
PEAK = """
import pathlib, sys
{before}
def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
begun = peak()
{work}
print(peak() - begun)
"""
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
DECODED = PEAK.format(
    before="""from app.captioner.image.decode import decode
data = pathlib.Path(sys.argv[1]).read_bytes()""",
    work="decode(data, at_least_px=224, max_pixels=10**7)",
)
FITTED = PEAK.format(
    before="""import numpy as np
from app.captioner.image.fit import fit, is_one_colour
def work(*shape):
    fit(np.zeros(shape, np.uint8), size_px=224, how="squeeze")
work(500, 500, 3)""",
    work="work(*eval(sys.argv[1]))",
)


def peak_growth(program, argument):
    """Bytes by which the peak memory of a fresh process grows while it works."""
    return int(subprocess.check_output([sys.executable, "-c", program, argument]))


def large(mode):
    """4.2 megapixels, more detail than a photo's."""
    coarse = np.random.default_rng(5).integers(0, 256, (50, 50, 4), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((2100, 2000), Image.Resampling.BICUBIC)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 256)
    return image.convert(mode) if mode != "P" else image.convert("RGB").convert("P")


class TestCost:
    def test_what_costs_more_is_told_to_cost_more(self):
        """Within a factor of four of what it takes, all against the first; noise is in both."""
        shape = (2400, 1600)
        files = {
            "png": saved(photo(*shape), "PNG", compress_level=1),
            "png with alpha": saved(photo(*shape, mode="RGBA"), "PNG", compress_level=1),
            "jpeg": saved(photo(*shape), "JPEG"),
            "progressive jpeg": saved(photo(*shape), "JPEG", progressive=True),
            "scans": many_scans(*shape, 20, 0xC2),
            "arithmetic scans": many_scans(*shape, 5, 0xCA),
            "webp": saved(photo(*shape), "WEBP", method=0),
        }
        taken_s = {
            name: min(cpu_s(lambda: read(data, at_least_px=224)) for _ in range(3))  # noqa: B023
            for name, data in files.items()
        }
        off = {name: cost(data) / taken_s[name] for name, data in files.items()}
        middle = sorted(off.values())[len(off) // 2]
        assert all(middle / 4 < each < middle * 4 for each in off.values()), off

    @pytest.mark.parametrize("data", [b"", b"text", JPEG[:9], PNG[:20], WEBP[:14], b"\xff\xd8\xff"])
    def test_what_is_no_image_has_a_cost_as_well(self, data):
        assert 0 <= cost(data) < 1


class TestLarge:
    """Above four megapixels PNG and WebP are shrunk in strips, before anything is made of them."""

    @pytest.mark.parametrize(
        ("kind", "mode"),
        [("PNG", mode) for mode in ("1", "L", "P", "LA", "RGB", "RGBA", "I;16")]
        + [("WEBP", "RGB"), ("WEBP", "RGBA")],
    )
    def test_it_looks_as_if_it_had_been_whole(self, kind, mode):
        data = saved(large(mode), kind, compress_level=1, lossless=True, quality=0, method=0)
        small, whole = (read(data, at_least_px=px, max_pixels=10**7) for px in (100, 2000))
        assert small.shape[0] < 300
        assert whole.shape == (2000, 2100, 3)
        one, other = (fit(each, size_px=100, how="squeeze").astype(int) for each in (small, whole))
        off = np.abs(one - other)
        assert off.mean() < 1.5  # of 255, with contrasts of full range between neighbours

    @pytest.mark.parametrize("kind", ["PNG", "WEBP"])
    def test_the_colour_of_what_is_transparent_does_not_shine_through(self, kind):
        pixels = np.zeros((2000, 2100, 4), np.uint8)
        pixels[..., 0] = 255
        pixels[::2, ::2] = (0, 0, 255, 255)
        data = saved(Image.fromarray(pixels), kind, lossless=True, exact=True, method=0)
        image_HWC = read(data, at_least_px=250, max_pixels=10**7)
        assert image_HWC.shape == (500, 525, 3)
        assert close(image_HWC[5:6, 5:6], np.array([[[191, 191, 255]]]), within=1)

    def test_a_transparent_palette_entry_stays_white(self):
        image = Image.new("P", (2000, 2100), 0)
        image.putpalette([10, 20, 30, 40, 50, 60])
        data = saved(image, "PNG", transparency=0)
        assert bool((read(data, at_least_px=100, max_pixels=10**7) == 255).all())

    def test_every_orientation_is_undone(self):
        for orientation in (1, 6):
            data = saved(large("RGB"), "PNG", exif=exif_bytes(orientation), compress_level=1)
            expected = np.asarray(TURNED[orientation](large("RGB").reduce(10)))
            assert close(read(data, at_least_px=100, max_pixels=10**7), expected, within=1)

    def test_a_long_side_is_shortened_by_itself(self):
        assert read(
            png(100, 50_000, 8, 0, bytes(101 * 50_000)), at_least_px=100, max_pixels=10**7
        ).shape == (6250, 100, 3)

    def test_a_small_file_of_a_large_webp_is_read_in_one_go(self):
        """In blocks of as many bytes as the file has, a flat picture took most of its time."""
        flat = saved(
            Image.new("RGBA", (2900, 2900), (9, 9, 9, 99)),
            "WEBP",
            lossless=True,
            quality=0,
            method=0,
        )
        more = bytes(100_000)  # behind the last pixel, in the same chunk
        size = struct.pack("<I", int.from_bytes(flat[16:20], "little") + len(more))
        longer = flat[8:16] + size + flat[20:] + more
        longer = b"RIFF" + struct.pack("<I", len(longer)) + longer
        small_s, longer_s = (
            min(cpu_s(lambda: read(data, at_least_px=100, max_pixels=10**7)) for _ in range(3))  # noqa: B023
            for data in (flat, longer)
        )
        assert small_s < 2 * longer_s

    @NEEDS_PROC
    @pytest.mark.parametrize(
        ("kind", "mode", "bytes_per_pixel", "options"),
        [
            ("PNG", "1", 3, {}),
            ("PNG", "P", 3, {}),
            ("PNG", "RGBA", 6, {"compress_level": 1}),
            ("JPEG", "CMYK", 10, {"progressive": True}),  # the coefficients of four colours
            ("WEBP", "RGBA", 18, {"lossless": True, "method": 0}),  # libwebp keeps two canvases
        ],
    )
    def test_no_step_takes_more_than_a_few_bytes_for_a_pixel(
        self, kind, mode, bytes_per_pixel, options, tmp_path
    ):
        for size, more in (((2900, 2900), 0), ((300, 16_000), 5)):  # of which less is shrunk
            (tmp_path / "file").write_bytes(saved(Image.new(mode, size), kind, **options))
            grown = peak_growth(DECODED, str(tmp_path / "file"))
            assert grown < (bytes_per_pixel + more) * size[0] * size[1] + 2**24

    @NEEDS_PROC
    @pytest.mark.parametrize("shape", ["10**6, 1, 3", "1, 10**6, 3"])
    def test_fitting_the_narrowest_takes_little(self, shape):
        """It would go through a million rows, or columns, of the width of the square."""
        assert peak_growth(FITTED, shape) < 10**8

    def test_the_narrowest_keeps_its_colours(self):
        for size in ((65_535, 1), (1, 65_535), (65_535, 60)):
            image_HWC = np.full((*size, 3), 77, np.uint8)
            assert bool((fit(image_HWC, size_px=224, how="squeeze") == 77).all())


class TestFit:
    @pytest.mark.parametrize("how", ["squeeze", "crop", "pad"])
    @pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1), (7, 3), (640, 427), (224, 224)])
    def test_any_size_becomes_the_square(self, size, how):
        image_HWC = np.full((*size, 3), 200, np.uint8)
        square_SSC = fit(image_HWC, size_px=224, how=how)
        assert square_SSC.dtype == np.uint8
        assert square_SSC.shape == (224, 224, 3)
        assert (square_SSC[111:113, 111:113] == 200).any()

    def test_squeeze_keeps_both_ends(self):
        square_SSC = fit(np.asarray(photo(400, 100)), size_px=50, how="squeeze")
        assert square_SSC[25, 0, 0] < 10
        assert square_SSC[25, -1, 0] > 245

    def test_crop_keeps_the_middle_and_the_aspect_ratio(self):
        square_SSC = fit(np.asarray(photo(400, 100)), size_px=50, how="crop")
        assert 90 < square_SSC[25, 0, 0] < 105
        assert 150 < square_SSC[25, -1, 0] < 165

    @pytest.mark.parametrize("size", [(400, 100), (100, 400)], ids=["wide", "tall"])
    def test_pad_keeps_everything_between_grey_bars(self, size):
        square_SSC = fit(np.asarray(Image.new("RGB", size, WHITE)), size_px=40, how="pad")
        bars_SSC = square_SSC if size[0] > size[1] else square_SSC.transpose(1, 0, 2)
        assert (bars_SSC[15:25] == 255).all()
        assert (bars_SSC[:15] == 117).all()
        assert (bars_SSC[25:] == 117).all()

    def test_a_square_of_the_right_size_is_unchanged(self):
        image_HWC = np.asarray(photo(32, 32))
        for how in ("squeeze", "crop", "pad"):
            assert np.array_equal(fit(image_HWC, size_px=32, how=how), image_HWC)

    def test_shrinking_is_antialiased(self):
        stripes_HWC = np.zeros((64, 64, 3), np.uint8)
        stripes_HWC[:, ::2] = 255
        assert close(
            fit(stripes_HWC, size_px=16, how="squeeze")[:, 1:-1],
            np.full((16, 14, 3), 127),
            within=3,
        )
