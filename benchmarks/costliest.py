"""Which upload costs most? A seeded search over what JPEG, PNG and WebP can be made to hold.

Every input is drawn, or made from one of the costliest so far with one choice changed, and decoded
and fitted in a child process that is ended at a limit. Told are CPU seconds per request and per
uploaded megabyte, peak memory, and how far the estimate from the header was off.

Run: .venv/bin/python benchmarks/costliest.py --seconds 300
"""

import argparse
import functools
import io
import json
import math
import os
import random
import resource
import signal
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import result
from app.captioner.errors import ImageError
from app.captioner.image import decode, fit

MAX_PIXELS = 40_000_000
MAX_BYTES = 20 * 2**20
SIZE_PX = 224
LIMIT_S = 20
KEPT = 8
MOST_ENCODED_PX = 3000
ESTIMATED_FROM_S = 0.05
Choices = dict[str, Any]
Shape = tuple[int, int]

SHAPES: list[Shape] = [
    (6324, 6324), (65_000, 610), (610, 65_000), (2980, 2980), (3640, 3640), (447, 65_000),
    (1, 65_535), (65_535, 1), (16_000, 2490), (1000, 1000), (100, 100), (5000, 3200),
]  # fmt: skip


class Cost(NamedTuple):
    """What one input cost in its child process."""

    cpu_s: float
    peak_mib: float
    told: str


class Tried(NamedTuple):
    """One input of the search."""

    kind: str
    choices: Choices
    nbytes: int
    cost: Cost
    estimated_s: float

    @property
    def s_per_mb(self) -> float:
        """CPU seconds per uploaded megabyte."""
        return self.cost.cpu_s / self.nbytes * 1e6


# --- JPEG by hand ---------------------------------------------------------------------------------

JPEG: dict[str, list[Any]] = {
    "shape": SHAPES,
    "frame": [0xC0, 0xC1, 0xC2, 0xC2, 0xC9, 0xCA, 0xCA],
    "components": [1, 3, 3, 4],
    "sampling": [0x11, 0x21, 0x22, 0x41, 0x44],
    "scans": [1, 2, 5, 10, 20, 30, 45, 50, 51],
    "restart": [0, 0, 1, 7, 1000],
    "fill": ["zero", "stuffed", "noise", "restarts", "none"],
    "bytes_per_scan": [0, 40, 1000, 30_000, 400_000, 4_000_000],
    "tables": [1, 1, 100, 900],
    "between": ["", "", "DQT", "DHT", "APP0"],
    "low_bit": [0, 1, 13],
}


def jpeg(choices: Choices, rng: random.Random) -> bytes:
    """Write a JPEG whose scans walk over all of a picture that is hardly there."""
    width, height = choices["shape"]
    numbers = range(1, choices["components"] + 1)
    samplings = [choices["sampling"], *[0x11] * (len(numbers) - 1)]
    parts = zip(numbers, samplings, strict=True)
    frame = struct.pack(">BHHB", 8, height, width, len(numbers))
    frame += b"".join(bytes([number, sampling, 0]) for number, sampling in parts)
    head = [
        b"\xff\xd8",
        *[_segment(0xDB, b"\0" + b"\1" * 64)] * choices["tables"],
        *_huffman_tables(),
    ]
    head += [
        _segment(0xDD, struct.pack(">H", choices["restart"])),
        _segment(choices["frame"], frame),
    ]
    scans = _scans(choices, rng)
    return b"".join([*head, *scans, b"\xff\xd9"])


def _scans(choices: Choices, rng: random.Random) -> Iterator[bytes]:
    progressive = choices["frame"] in {0xC2, 0xCA}
    numbers = list(range(1, choices["components"] + 1))
    low = choices["low_bit"]
    yield _scan(numbers, (0, 0, low) if progressive else (0, 63, 0)) + _content(choices, rng)
    for n in range(choices["scans"] - 1):
        yield {"": b"", "DQT": _segment(0xDB, b"\0" + b"\1" * 64), "APP0": _segment(0xE0, b"")}.get(
            choices["between"], b"".join(_huffman_tables())
        )
        number, turn = numbers[n % len(numbers)], n // len(numbers)
        bits = low if turn == 0 else (low - turn + 1) << 4 | low - turn if turn <= low else 0
        yield _scan([number], (1, 63, bits) if progressive else (0, 63, 0)) + _content(choices, rng)


def _scan(numbers: list[int], spectrum: tuple[int, int, int]) -> bytes:
    chosen = b"".join(bytes([number, 0]) for number in numbers)
    return _segment(0xDA, bytes([len(numbers)]) + chosen + bytes(spectrum))


def _content(choices: Choices, rng: random.Random) -> bytes:
    size = min(choices["bytes_per_scan"], MAX_BYTES // choices["scans"] - 2000)
    if choices["fill"] == "noise":
        return rng.randbytes(size).replace(b"\xff", b"\xff\0")
    units = {"zero": b"\0", "stuffed": b"\xff\0", "restarts": b"\xff\xd0", "none": b""}
    unit = units[choices["fill"]]
    return unit * (size // max(1, len(unit)))


@functools.cache
def _huffman_tables() -> tuple[bytes, ...]:
    """Take those of a JPEG that Pillow wrote."""
    data = _saved(Image.new("RGB", (8, 8)), "JPEG")
    at, found = 2, list[bytes]()
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xC4:
            found.append(data[at:end])
        at = end
    return tuple(found)


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


# --- PNG by hand ----------------------------------------------------------------------------------

PNG: dict[str, list[Any]] = {
    "shape": SHAPES,
    "colour": [(1, 0), (8, 0), (16, 0), (8, 2), (16, 2), (8, 3), (4, 3), (8, 4),
               (16, 4), (8, 6), (16, 6)],
    "filter": [0, 1, 2, 3, 4, 4],
    "content": ["flat", "noise", "steps"],
    "interlace": [0, 0, 1],
    "deflate": ["best", "fast", "stored"],
    "empty_blocks": [0, 0, 1000, 600_000],
    "transparent": [False, True],
    "pieces": [1, 1, 100, 40_000],
    "company": ["", "", "iCCP", "zTXt", "eXIf", "tEXt"],
    "company_count": [1, 100, 1000],
}  # fmt: skip
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def png(choices: Choices, rng: random.Random) -> bytes:
    """Write a PNG whose pixels are packed as tightly, and whose chunks are as many, as chosen."""
    (width, height), (depth, colour) = choices["shape"], choices["colour"]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, choices["interlace"])
    chunks = [_chunk(b"IHDR", header), *_company(choices)]
    if colour == 3:
        chunks.append(_chunk(b"PLTE", bytes(range(192)) if depth == 8 else bytes(48)))
    if choices["transparent"] and colour < 4:
        chunks.append(_chunk(b"tRNS", {0: b"\0\0", 2: bytes(6), 3: b"\0\x80"}[colour]))
    pixels = _deflated(choices, rng, (width * depth * _CHANNELS[colour] + 7) // 8, height)
    step = -(-len(pixels) // choices["pieces"])
    chunks += [_chunk(b"IDAT", pixels[at : at + step]) for at in range(0, len(pixels), step)]
    return b"".join([b"\x89PNG\r\n\x1a\n", *chunks, _chunk(b"IEND", b"")])


def _deflated(choices: Choices, rng: random.Random, row_bytes: int, rows: int) -> bytes:
    level = {"best": 9, "fast": 1, "stored": 0}[choices["deflate"]]
    if choices["interlace"]:
        rows = 2 * rows + 16  # more rows in all, each shorter; what is left over is not read
    block = _rows(choices, rng, row_bytes, max(1, min(rows, 2**22 // (row_bytes + 1))))
    packer = zlib.compressobj(level, wbits=-15)
    parts, size, left = (
        [b"\x78\x9c", _empty_blocks(choices["empty_blocks"])],
        0,
        rows * (row_bytes + 1),
    )
    check = 1
    while left > 0 and size < MAX_BYTES:
        raw = block[:left]
        parts.append(packer.compress(raw))
        check, left, size = zlib.adler32(raw, check), left - len(raw), size + len(parts[-1])
    return b"".join([*parts, packer.flush(), check.to_bytes(4, "big")])


def _rows(choices: Choices, rng: random.Random, row_bytes: int, rows: int) -> bytes:
    if choices["content"] == "noise":
        body = np.frombuffer(rng.randbytes(rows * row_bytes), np.uint8).reshape(rows, row_bytes)
    else:
        step = 7 if choices["content"] == "steps" else 0
        body = np.tile(np.arange(row_bytes, dtype=np.uint64) * step % 251, (rows, 1))
    marked = np.empty((rows, row_bytes + 1), np.uint8)
    marked[:, 0], marked[:, 1:] = choices["filter"], body
    return marked.tobytes()


def _empty_blocks(count: int) -> bytes:
    """Write deflate blocks without a byte in them, each with all tables it can have (RFC 1951)."""
    bits = "0" + "01"  # not the last; its own tables, the least bit first
    bits += _number(29, 5) + _number(29, 5) + _number(8, 4)
    lengths = {16: 1, 8: 3, 9: 3, 4: 3, 5: 3}
    bits += "".join(
        _number(lengths.get(n, 0), 3) for n in (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4)
    )
    codes = {16: "0", 4: "100", 5: "101", 8: "110", 9: "111"}
    for length, many in ((8, 226), (9, 60), (4, 2), (5, 28)):
        bits += _repeated(codes, length, many)
    bits += format(482, "09b")  # the end, 31st of the codes of nine bits
    whole = bits * 8  # of whole bytes
    block = bytes(int(whole[at : at + 8][::-1], 2) for at in range(0, len(whole), 8))
    return block * (count // 8)


def _repeated(codes: dict[int, str], length: int, many: int) -> str:
    written, left = codes[length], many - 1
    while left >= 3:
        run = min(6, left)
        written, left = written + codes[16] + _number(run - 3, 2), left - run
    return written + codes[length] * left


def _number(value: int, bits: int) -> str:
    return format(value, f"0{bits}b")[::-1]


def _company(choices: Choices) -> list[bytes]:
    bodies = {
        "iCCP": b"x\0\0" + zlib.compress(bytes(10**6)),
        "zTXt": b"x\0\0" + zlib.compress(bytes(10**6)),
        "eXIf": b"MM\0\x2a\0\0\0\x08\xff\xff" + bytes(12) * 5000,
        "tEXt": b"x\0" + b"y" * 1000,
    }
    name = choices["company"]
    return [_chunk(name.encode(), bodies[name])] * choices["company_count"] if name else []


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


# --- what an encoder writes, then harmed ----------------------------------------------------------

WEBP: dict[str, list[Any]] = {
    "shape": [(6324, 6324), (2980, 2980), (16_000, 2490), (447, 16_383), (1000, 1000),
              (4000, 3000)],
    "mode": ["RGB", "RGBA"],
    "content": ["flat", "noise", "photo"],
    "lossless": [True, False],
    "quality": [0, 75],
    "harm": [0, 0, 1, 5, 50],
    "padding": [0, 0, 20_000],
    "frames": [1, 1, 1000],
    "unknown": [0, 0, 1000, 100_000],
}  # fmt: skip
SAVED_JPEG: dict[str, list[Any]] = {
    "shape": SHAPES,
    "mode": ["L", "RGB", "CMYK"],
    "content": ["flat", "noise", "photo"],
    "progressive": [True, False],
    "quality": [1, 75, 100],
    "subsampling": [0, 2],
    "harm": [0, 0, 1, 5, 50],
    "exif": [0, 0, 5000],
}


def webp(choices: Choices, rng: random.Random) -> bytes:
    """Let Pillow write a WebP; then harm its bits, repeat its frames, put chunks between."""
    looks = [choices[name] for name in ("shape", "mode", "content", "lossless", "quality")]
    body = _harmed(_webp_body(*looks), choices["harm"], rng)
    if choices["padding"]:
        size = int.from_bytes(body[4:8], "little") + choices["padding"]
        body = body[:4] + struct.pack("<I", size) + body[8:] + bytes(choices["padding"])
    if choices["frames"] > 1 or choices["unknown"]:
        body = _extended(body, choices)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@functools.lru_cache(maxsize=64)
def _webp_body(shape: Shape, mode: str, content: str, lossless: bool, quality: int) -> bytes:  # noqa: FBT001
    side = MOST_ENCODED_PX if content != "flat" else max(shape)  # more takes minutes to encode
    drawn = _drawn((min(side, shape[0]), min(side, shape[1])), mode, content)
    return _saved(drawn, "WEBP", lossless=lossless, quality=quality, method=0)[12:]


def _extended(body: bytes, choices: Choices) -> bytes:
    if body.startswith(b"VP8X"):
        body = body[18:]
    most_px = MOST_ENCODED_PX if choices["content"] != "flat" else max(choices["shape"])
    sides = (min(side, most_px) for side in choices["shape"])
    width, height = (struct.pack("<I", side - 1)[:3] for side in sides)
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes([0x12, 0, 0, 0]) + width + height
    frame = bytes(6) + width + height + b"\x64\0\0\0" + body
    frame = b"ANMF" + struct.pack("<I", len(frame)) + frame + bytes(len(frame) % 2)
    most = max(1, min(choices["frames"], MAX_BYTES // len(frame) - 1))
    return (
        canvas
        + b"ANIM\x06\0\0\0"
        + bytes(6)
        + (b"abcd" + bytes(4)) * choices["unknown"]
        + frame * most
    )


def saved_jpeg(choices: Choices, rng: random.Random) -> bytes:
    """Let Pillow write a JPEG, then harm its bits."""
    drawn = _drawn(choices["shape"], choices["mode"], choices["content"])
    exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff" + bytes(12) * choices["exif"]
    options = {key: choices[key] for key in ("quality", "progressive", "subsampling")}
    return _harmed(_saved(drawn, "JPEG", exif=exif, **options), choices["harm"], rng)


@functools.lru_cache(maxsize=4)
def _drawn(shape: Shape, mode: str, content: str) -> Image.Image:
    if content == "flat":
        return Image.new(mode, shape, 90 if mode == "L" else (90, 20, 30, 40)[: len(mode)])
    rng = np.random.default_rng(0)
    coarse = 1 if content == "noise" else 24
    small = tuple(max(1, min(side, 2000) // coarse) for side in shape)
    pixels = rng.integers(0, 256, (small[1], small[0], 4), dtype=np.uint8)
    drawn = Image.fromarray(pixels).resize(shape, Image.Resampling.BILINEAR)
    return drawn if mode == "RGBA" else drawn.convert("RGB").convert(mode)


def _saved(drawn: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    drawn.save(file, kind, **options)
    return file.getvalue()


def _harmed(data: bytes, count: int, rng: random.Random) -> bytes:
    harmed = bytearray(data)
    for _ in range(count if len(data) > 60 else 0):
        harmed[rng.randrange(40, len(data))] = rng.randrange(256)
    return bytes(harmed)


# --- the search -----------------------------------------------------------------------------------

Build = Callable[[Choices, random.Random], bytes]
KINDS: dict[str, tuple[dict[str, list[Any]], Build]] = {
    "jpeg": (JPEG, jpeg),
    "saved jpeg": (SAVED_JPEG, saved_jpeg),
    "png": (PNG, png),
    "webp": (WEBP, webp),
}


TURNS = ("jpeg", "jpeg", "jpeg", "png", "saved jpeg", "jpeg", "webp")
"""What is written by hand is written sooner."""
SUSPECTS: dict[str, list[Choices]] = {
    "jpeg": [
        {"frame": 0xCA, "shape": (3640, 3640), "scans": 10, "low_bit": 13, "components": 3},
        {"frame": 0xCA, "shape": (2980, 2980), "scans": 20, "low_bit": 13, "components": 3},
        {"frame": 0xC2, "shape": (3640, 3640), "scans": 50, "low_bit": 13, "components": 3},
        {
            "frame": 0xC2,
            "shape": (610, 65_000),
            "scans": 20,
            "low_bit": 0,
            "bytes_per_scan": 30_000,
        },
        {"frame": 0xC9, "shape": (6324, 6324), "bytes_per_scan": 4_000_000, "fill": "noise"},
        {"frame": 0xC0, "shape": (447, 65_000), "bytes_per_scan": 4_000_000, "restart": 1},
    ],
    "png": [
        {"colour": (16, 6), "filter": 4, "shape": (6324, 6324)},
        {"colour": (16, 6), "filter": 4, "shape": (447, 65_000), "interlace": 1},
        {"colour": (1, 0), "shape": (6324, 6324)},
        {"colour": (8, 3), "shape": (6324, 6324), "transparent": True, "filter": 4},
        {"colour": (8, 0), "shape": (100, 100), "empty_blocks": 600_000},
    ],
    "saved jpeg": [{"shape": (610, 65_000), "mode": "CMYK", "content": "photo"}],
    "webp": [
        {"shape": (6324, 6324), "mode": "RGBA", "padding": 20_000},
        {"shape": (6324, 6324), "lossless": False},
        {"shape": (2980, 2980), "mode": "RGBA"},
    ],
}
"""Tried first: each what somebody thought of."""


def _first(space: dict[str, list[Any]]) -> Choices:
    return {name: values[0] for name, values in space.items()}


def search(seconds: float, seed: int) -> list[Tried]:
    """Try inputs until the time is over; kinds take turns."""
    rng, tried, until_s = random.Random(seed), list[Tried](), time.monotonic() + seconds
    suspects = {
        kind: [{**_first(KINDS[kind][0]), **each} for each in SUSPECTS[kind]] for kind in KINDS
    }
    while time.monotonic() < until_s:
        for kind in TURNS:
            space, build = KINDS[kind]
            choices = (
                suspects[kind].pop()
                if suspects[kind]
                else _next([each for each in tried if each.kind == kind], space, rng)
            )
            data = _built(build, choices, rng)
            if 0 < len(data) <= MAX_BYTES:
                tried.append(Tried(kind, choices, len(data), measured(data), decode.cost(data)))
    return tried


def _built(build: Build, choices: Choices, rng: random.Random) -> bytes:
    try:
        return build(choices, rng)
    except (ValueError, OSError):  # an encoder that refuses, as libwebp does much noise
        return b""


def _next(tried: list[Tried], space: dict[str, list[Any]], rng: random.Random) -> Choices:
    """Draw all choices, or change one of an input that is among the costliest."""
    if len(tried) < KEPT or rng.random() < 0.4:
        return {name: rng.choice(values) for name, values in space.items()}
    by = rng.choice([lambda each: each.cost.cpu_s, lambda each: each.s_per_mb])
    parent = rng.choice(sorted(tried, key=by, reverse=True)[:KEPT])
    name = rng.choice(list(space))
    return {**parent.choices, name: rng.choice(space[name])}


def measured(data: bytes) -> Cost:
    """Decode and fit one upload in a child process, which is ended at a limit."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.write(writing, json.dumps(_here(data)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if not answer:
        return Cost(LIMIT_S, math.nan, signal.Signals(os.WTERMSIG(status)).name)
    return Cost(*json.loads(answer))


def _here(data: bytes) -> tuple[float, float, str]:
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
    before = resource.getrusage(resource.RUSAGE_SELF)
    told = _told(data)
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent_s, (after.ru_maxrss - before.ru_maxrss) / 1024, told


def _told(data: bytes) -> str:
    try:
        pixels_HWC = decode.decode(data, at_least_px=SIZE_PX, max_pixels=MAX_PIXELS)
    except ImageError as error:
        return error.code
    fit.fit(pixels_HWC, size_px=SIZE_PX, how="squeeze")
    return "read"


# --- the result -----------------------------------------------------------------------------------


def table_of(tried: list[Tried]) -> list[str]:
    """Give the costliest of each kind, per request and per megabyte."""
    rows = [f"{len(tried)} inputs; CPU seconds of decode and fit, one thread; most of each kind"]
    rows.append(
        f"{'':24}{'CPU s':>8}{'bytes':>10}{'s/MB':>10}{'MiB':>7}{'est. s':>8}  told, choices"
    )
    for kind in KINDS:
        mine = [each for each in tried if each.kind == kind]
        rows += [_row(f"{kind}, a request", max(mine, key=lambda each: each.cost.cpu_s))]
        rows += [_row(f"{kind}, a megabyte", max(mine, key=lambda each: each.s_per_mb))]
        rows += [_row(f"{kind}, memory", max(mine, key=lambda each: each.cost.peak_mib))]
    off = _off(tried)
    within = {by: sum(1 / by <= each <= by for each in off) / max(1, len(off)) for by in (2, 3)}
    rows.append(f"{len(off)} were read in {ESTIMATED_FROM_S} s or more. The estimate is")
    rows.append(f"within a factor of two for {within[2]:.0%}, of three for {within[3]:.0%},")
    rows.append(f"from {min(off):.2f} to {max(off):.2f} times the cost")
    return rows


def _row(name: str, each: Tried) -> str:
    cost = each.cost
    numbers = f"{cost.cpu_s:8.2f}{each.nbytes:10}{each.s_per_mb:10.3f}{cost.peak_mib:7.0f}"
    return f"{name:24}{numbers}{each.estimated_s:8.2f}  {cost.told}, {_short(each.choices)}"


def _short(choices: Choices) -> str:
    return " ".join(f"{name}={value}".replace(" ", "") for name, value in choices.items() if value)


def _off(tried: list[Tried]) -> list[float]:
    """Estimate by cost, of what was read and is no trifle."""
    costly = [each for each in tried if each.cost.cpu_s >= ESTIMATED_FROM_S]
    return [each.estimated_s / each.cost.cpu_s for each in costly if each.cost.told == "read"]


def main() -> None:
    """Search, then report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    result.add_output(parser)
    args = parser.parse_args()
    measured(_saved(Image.new("RGB", (300, 300)), "PNG"))
    tried = search(args.seconds, args.seed)
    worst = {
        kind: {
            "cpu_s": max(each.cost.cpu_s for each in tried if each.kind == kind),
            "s_per_mb": max(each.s_per_mb for each in tried if each.kind == kind),
            "peak_mib": max(each.cost.peak_mib for each in tried if each.kind == kind),
        }
        for kind in KINDS
    }
    line = {"benchmark": "costliest", "seed": args.seed, "inputs": len(tried), "worst": worst}
    result.report(table_of(tried), line, args.output)


if __name__ == "__main__":
    sys.exit(main())
