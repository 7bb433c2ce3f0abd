"""GIF, BMP, TIFF, AVIF and HEIC: the right pixels, and the guards that JPEG, PNG and WebP have."""

import io
import struct
import subprocess
import sys
import time

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
from app.captioner.image import decode as decode_module
from app.captioner.image.decode import cost, decode
from app.captioner.image.formats import is_image, is_quick, pixels
from support.drawn import photo, read, saved

WHITE = (255, 255, 255)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


def grey_16(width=48, height=32):
    return Image.fromarray(np.asarray(photo(width, height, "L")).astype(np.uint16) * 257)


def heic():
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    return saved(photo(64, 64), "HEIF", quality=95)


def off(data, expected):
    """Mean distance of the pixels from an image, of 255."""
    image_HWC = read(data)
    wanted = np.asarray(expected.convert("RGB"))
    assert image_HWC.shape == wanted.shape
    return np.abs(image_HWC.astype(int) - wanted).mean()


GIF = saved(photo(), "GIF")
SCREEN = 13 + (3 << (GIF[10] & 7) + 1)  # where it ends, with its palette
BMP = saved(photo(), "BMP")
TIFF = saved(photo(), "TIFF")
LZW = saved(photo(), "TIFF", compression="tiff_lzw")
AVIF = saved(photo(), "AVIF", quality=95)
ALL = {"gif": GIF, "bmp": BMP, "tiff": TIFF, "lzw": LZW, "avif": AVIF}
FAX = saved(photo(mode="1"), "TIFF", compression="group4")
RLE = (
    b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078)
    + struct.pack("<IiiHHIIiiII", 40, 4, 2, 1, 8, 1, 0, 0, 0, 256, 0)
    + b"".join(bytes([n, n, n, 0]) for n in reversed(range(256)))
    + b"\4\5\0\0" + b"\4\x09\0\0" + b"\0\1"
)  # fmt: skip


class TestPixels:
    @pytest.mark.parametrize("data", [BMP, TIFF, LZW], ids=["bmp", "tiff", "lzw"])
    def test_a_lossless_file_keeps_every_pixel(self, data):
        assert off(data, photo()) == 0

    @pytest.mark.parametrize(("data", "within"), [(GIF, 12), (AVIF, 3)], ids=["gif", "avif"])
    def test_a_lossy_file_is_close(self, data, within):
        assert off(data, photo()) < within

    @pytest.mark.parametrize(
        ("mode", "options"),
        [
            ("1", {"compression": "group4"}),
            ("1", {"compression": "group3"}),
            ("L", {"compression": "packbits"}),
            ("P", {}),
            ("CMYK", {"compression": "tiff_lzw"}),
            ("RGB", {"compression": "tiff_adobe_deflate"}),
            ("RGB", {"compression": "tiff_deflate"}),
        ],
    )
    def test_what_scanners_write_is_read(self, mode, options):
        image = photo(mode=mode)
        assert off(saved(image, "TIFF", **options), image) == 0

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_16_bits_are_scaled_in_either_order(self, order):
        pixels = np.asarray(grey_16()).astype(order + "u2")
        data = saved(Image.fromarray(pixels), "TIFF")
        assert off(data, photo(mode="L")) < 1

    def test_jpeg_in_a_tiff_is_close(self):
        assert off(saved(photo(), "TIFF", compression="jpeg", quality=95), photo()) < 6

    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
    def test_a_bitmap_of_every_depth_is_read(self, mode):
        image = photo(mode=mode)
        assert off(saved(image, "BMP"), image) == 0

    def test_a_bitmap_in_runs_is_read(self):
        assert read(RLE)[:, 0].tolist() == [[246] * 3, [250] * 3]

    @pytest.mark.parametrize("kind", ["TIFF", "AVIF"])
    def test_transparent_pixels_are_white(self, kind):
        data = saved(Image.new("RGBA", (16, 16), (200, 0, 0, 0)), kind)
        assert read(data)[8, 8].tolist() == list(WHITE)

    def test_a_transparent_colour_of_a_gif_is_white(self):
        image = Image.new("P", (8, 8))
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putpixel((1, 0), 1)
        image_HWC = read(saved(image, "GIF", transparency=0))
        assert image_HWC[0, :2].tolist() == [list(WHITE), [40, 50, 60]]

    @pytest.mark.parametrize("kind", ["GIF", "TIFF", "AVIF"])
    def test_of_several_pictures_the_first_is_given(self, kind):
        frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert (np.abs(read(data)[8, 8].astype(int) - (255, 0, 0)) < 8).all()

    def test_a_second_picture_that_is_cut_off_is_no_matter(self):
        frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "lime")]
        data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
        assert read(data[:-20]).shape == (64, 64, 3)

    @pytest.mark.parametrize("kind", ["TIFF", "AVIF"])
    @pytest.mark.parametrize(
        ("orientation", "turn"),
        [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270),
         (8, Image.Transpose.ROTATE_90)],
    )  # fmt: skip
    def test_an_orientation_is_undone(self, kind, orientation, turn):
        exif = Image.Exif()
        exif[0x0112] = orientation
        assert off(saved(photo(), kind, exif=exif, quality=95), photo().transpose(turn)) < 4

    def test_heic_is_read_where_its_library_is_there(self):
        assert off(heic(), photo(64, 64)) < 4

    def test_without_its_library_heic_is_refused_with_what_to_do(self, monkeypatch):
        monkeypatch.setattr(decode_module, "find_spec", lambda _: None)
        with pytest.raises(UnsupportedImage, match=r"send a JPEG, or install .*\[heif\]"):
            read(HEIC)


def with_size(data, width, height):
    """Change what the header declares."""
    if data is GIF:  # the picture covers the screen
        at = data.index(b",", 13 + 3 * 256)
        data = data[: at + 5] + struct.pack("<HH", width, height) + data[at + 9 :]
        return data[:6] + struct.pack("<HH", width, height) + data[10:]
    if data is BMP:
        return data[:18] + struct.pack("<ii", width, height) + data[26:]
    if data is AVIF:
        at = data.index(b"ispe")
        return data[: at + 8] + struct.pack(">II", width, height) + data[at + 16 :]
    for tag, before, now in ((256, 48, width), (257, 32, height)):
        new = struct.pack("<HHII", tag, 4, 1, now)
        for kind in (3, 4):
            data = data.replace(struct.pack("<HHII", tag, kind, 1, before), new)
    return data


class TestLimits:
    @pytest.mark.parametrize("data", ALL.values(), ids=ALL)
    def test_one_pixel_more_is_too_large(self, data):
        assert read(data, max_pixels=48 * 32).shape == (32, 48, 3)
        with pytest.raises(ImageTooLarge) as caught:
            read(data, max_pixels=48 * 32 - 1)
        assert caught.value.limit == 48 * 32 - 1

    @pytest.mark.parametrize("data", [GIF, BMP, TIFF, LZW], ids=["gif", "bmp", "tiff", "lzw"])
    def test_the_header_is_enough_to_refuse(self, data):
        with pytest.raises(ImageTooLarge):
            read(with_size(data, 30_000, 30_000))

    @pytest.mark.parametrize("data", [GIF, LZW], ids=["gif", "lzw"])
    def test_declared_pixels_are_held_against_the_bytes(self, data):
        with pytest.raises(TooCostly):
            read(with_size(data, 6000, 6000), max_pixels=40_000_000)

    def test_a_blank_page_of_a_fax_is_read(self):
        blank = saved(Image.new("1", (4960, 7016), 1), "TIFF", compression="group4")
        assert bool((read(blank, max_pixels=40_000_000, at_least_px=224) == 255).all())

    @pytest.mark.parametrize(
        ("tag", "value"), [(259, 34925), (259, 6), (259, 50000), (262, 8), (258, 32), (339, 3)]
    )
    def test_rare_codings_of_tiff_are_refused_with_what_to_do(self, tag, value):
        entry = struct.pack("<HHI", tag, 3, 1) + struct.pack("<HH", value, 0)
        directory = struct.unpack_from("<I", TIFF, 4)[0]
        count = struct.unpack_from("<H", TIFF, directory)[0]
        kept = [TIFF[directory + 2 + 12 * n : directory + 14 + 12 * n] for n in range(count)]
        entries = [each for each in kept if struct.unpack_from("<H", each)[0] != tag] + [entry]
        data = TIFF[:4] + struct.pack("<I", len(TIFF)) + TIFF[8:]
        data += struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
        with pytest.raises(UnsupportedImage, match="save it with LZW"):
            read(data)

    def test_a_directory_that_points_to_the_whole_file_again_and_again_costs_little(self):
        """Each of a thousand tags would be a copy of the file."""
        body = bytes(2**20)
        entries = [struct.pack("<HHII", 40_000 + n, 7, len(body), 8) for n in range(900)]
        data = b"II*\0" + struct.pack("<I", 8 + len(body)) + body
        data += struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
        began_s = time.thread_time()
        with pytest.raises(ImageError):
            read(data)
        assert time.thread_time() - began_s < 0.2

    @pytest.mark.parametrize(
        "data",
        [
            GIF[:SCREEN] + b"!\xfe\1a\0" * 10**6 + GIF[SCREEN:],
            GIF[:SCREEN] + b"!\xfe" + b"\1a" * 10**7 + b"\0" + GIF[SCREEN:],
            b"II*\0\x08\0\0\0\xff\xff" + b"\0\1\3\0\1\0\0\0\1\0\0\0" * 65_535,
            LZW + b"\xff\xda" * 10**6,
        ],
        ids=["comments", "short blocks", "entries", "scans"],
    )
    def test_a_crowd_of_parts_costs_little(self, data):
        began_s = time.thread_time()
        answers(data)
        cost(data)
        assert time.thread_time() - began_s < 0.5

    def test_scans_in_a_tiff_are_counted(self):
        data = saved(photo(), "TIFF", compression="jpeg")
        with pytest.raises(UndecodableImage):
            read(data + b"\xff\xda" * 1000)


class TestSize:
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
    def test_they_are_those_of_the_header(self, kind):
        assert pixels(saved(photo(300, 200), kind)) == 60_000

    @pytest.mark.parametrize("data", [b"", b"text", b"\xff\xd8\xff", b"\xff\xd8" + b"\xff" * 9])
    def test_of_what_is_no_image_there_are_none(self, data):
        assert pixels(data) == 0


class TestCost:
    @pytest.mark.parametrize("data", ALL.values(), ids=ALL)
    def test_none_is_quick_and_all_have_a_cost(self, data):
        assert is_image(data)
        assert not is_quick(data)
        assert 0 < cost(data) < 0.01

    @pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "AVIF"])
    def test_a_cost_grows_with_the_picture(self, kind):
        small, large = (saved(photo(side, side), kind) for side in (100, 1000))
        assert cost(large) > 20 * cost(small)

    def test_a_bitmap_in_runs_costs_more_than_it_looks(self):
        assert cost(RLE + bytes(10**6)) > 0.2


def answers(data):
    """Pixels or an ImageError; anything else fails the test."""
    try:
        image_HWC = read(data, max_pixels=1_000_000, at_least_px=64)
    except ImageError:
        return
    assert image_HWC.dtype == np.uint8
    assert image_HWC.shape[2] == 3


class TestHostile:
    @pytest.mark.parametrize("data", ALL.values(), ids=ALL)
    def test_every_single_cut_gives_an_answer(self, data):
        for end in range(0, len(data), max(1, len(data) // 400)):
            answers(data[:end])

    @pytest.mark.parametrize("data", [GIF, BMP, TIFF, LZW, AVIF], ids=ALL)
    def test_half_of_one_is_undecodable(self, data):
        with pytest.raises(UndecodableImage, match="the image is damaged or incomplete"):
            read(data[: len(data) // 2])

    @given(
        st.sampled_from([GIF, BMP, TIFF, LZW, FAX, AVIF, RLE]),
        st.lists(st.tuples(st.integers(0, 5000), st.binary(max_size=4)), max_size=8),
    )
    @settings(max_examples=400, deadline=None)
    def test_mutated_images_give_pixels_or_an_image_error(self, data, edits):
        mutated = bytearray(data)
        for at, patch in edits:
            mutated[at % len(mutated) : at % len(mutated) + len(patch)] = patch
        answers(bytes(mutated))

    @given(
        st.sampled_from([b"GIF89a", BMP[:30], b"II*\0\x08\0\0\0", b"MM\0*", AVIF[:32], HEIC[:24]]),
        st.binary(),
    )
    @settings(max_examples=300, deadline=None)
    def test_the_right_magic_before_arbitrary_bytes(self, magic, data):
        answers(magic + data)


def test_codecs_are_loaded_when_they_are_needed():
    program = (
        "import sys, app.captioner.image.decode;"
        "sys.exit(any(name in sys.modules for name in"
        " ('PIL.AvifImagePlugin', 'PIL.TiffImagePlugin', 'pillow_heif')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_limit_that_is_told_is_the_services_own():
    """Pillow refuses far more pixels by itself, before ours are counted."""
    packed = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(packed, "PNG")
    with pytest.raises(ImageTooLarge) as refused:
        decode(packed.getvalue(), at_least_px=224, max_pixels=40_000_000)
    assert refused.value.limit == 40_000_000
