"""A manifest from a stranger: every number within bounds, and all of them together."""

import json

import pytest
from pydantic import ValidationError

from app.captioner.manifest import (
    MOST_WORKING_BYTES,
    Golden,
    Manifest,
    table_bytes,
    working_bytes,
)
from support.tiny import tiny_unpublished


@pytest.fixture(scope="module")
def fields():
    return tiny_unpublished().manifest.model_dump(mode="json")


def changed(fields, part, **values):
    if not part:
        return {**fields, **values}
    return {**fields, part: {**fields[part], **values}}


LARGEST = [
    ("search", {"beam_width": 32, "max_words": 128}),
    ("search", {"length_penalty": 4.0}),
    ("search", {"length_penalty": -4.0}),
    ("search", {"no_repeat_ngram_size": 128}),
    ("search", {"min_words": 8}),
    ("architecture", {"words": 2**18 + 4}),
    ("architecture", {"embedding_width": 8192}),
    ("architecture", {"hidden_width": 8192}),
    ("architecture", {"mean": [0, 0, 0], "std": [1 / 255] * 3}),
    ("image", {"size_px": 512}),
    ("", {"name": "a" * 100}),
    ("", {"source_commit": "a" * 100}),
    ("", {"files": {f"figures/{n}.png": "a" * 64 for n in range(64)}}),
    ("", {"history": [{"loss": 1.0}] * 5000}),
    ("", {"scores": {"dev": ["x" * 60_000]}}),
]


@pytest.mark.parametrize(("part", "values"), LARGEST)
def test_the_largest_that_is_allowed_is_allowed(fields, part, values):
    Manifest.model_validate(changed(fields, part, **values))


TOO_LARGE = [
    *(("search", {"beam_width": n}) for n in (0, -1, 33, 10**6, 10**400, "x", None)),
    *(("search", {"max_words": n}) for n in (0, 129, 10**9, 10**400)),
    *(("search", {"min_words": n}) for n in (-1, 9, 10**9)),
    *(("search", {"length_penalty": n}) for n in (4.1, -4.1, 1e300, float("nan"), float("inf"))),
    *(("search", {"no_repeat_ngram_size": n}) for n in (-1, 1, 129, 10**9)),
    ("search", {"unknown": 1}),
    *(("architecture", {"words": n}) for n in (4, 2**18 + 5, 10**9, 10**400)),
    *(("architecture", {"embedding_width": n}) for n in (0, 8193, 10**9)),
    *(("architecture", {"hidden_width": n}) for n in (0, 8193, 10**9)),
    *(("architecture", {"dropout": n}) for n in (-0.1, 1.0, float("nan"))),
    *(("architecture", {"mean": [n, 0, 0]}) for n in (1e4, -1e4, float("nan"), float("inf"))),
    *(("architecture", {"std": [1, 1, n]}) for n in (0, -1, 1e-9, 1e4, float("nan"))),
    *(("architecture", {"std": [1] * n}) for n in (2, 4)),
    ("architecture", {"encoder": "../../etc"}),
    *(("image", {"size_px": n}) for n in (0, 31, 1025, 100_000, 10**400)),
    *(("", {"name": n}) for n in ("", "a" * 101, "a\n", "<b>", "../a", "\x1b[31m", "\ud800", 7)),
    *(("", {"version": n}) for n in ("", "1" * 101, "1\n", "1/2", "é", 7)),
    ("", {"source_commit": "a" * 101}),
    ("", {"files": {f"{n}.png": "a" * 64 for n in range(65)}}),
    ("", {"scores": {"dev": ["x" * 70_000]}}),
]


@pytest.mark.parametrize(("part", "values"), TOO_LARGE)
def test_what_is_beyond_its_bound_is_refused(fields, part, values):
    with pytest.raises(ValidationError):
        Manifest.model_validate(changed(fields, part, **values))


NO_NAMES = [
    "",
    "/etc/passwd",
    "../a",
    "a/../b",
    "a//b",
    "a/",
    ".hidden",
    "a/.b",
    "a\n",
    "a\x00",
    "é",
]


@pytest.mark.parametrize("name", [*NO_NAMES, "a" * 201, "\x1b[2J", "<script>", "a\\b"], ids=ascii)
def test_files_have_plain_relative_names(fields, name):
    with pytest.raises(ValidationError):
        Manifest.model_validate(changed(fields, "", files={name: "a" * 64}))


@pytest.mark.parametrize("sha256", ["", "a" * 63, "a" * 65, "g" * 64, "A" * 64, "a" * 64 + "\n", 7])
def test_a_hash_has_64_digits(fields, sha256):
    with pytest.raises(ValidationError):
        Manifest.model_validate(changed(fields, "", files={"a": sha256}))


WIDE = {"encoder": "resnet101", "hidden_width": 8192}
TOGETHER = [
    ({"words": 2**18}, {}, {"beam_width": 32}),
    (WIDE, {"size_px": 640}, {"beam_width": 32, "max_words": 128}),
    ({}, {"size_px": 1024}, {"beam_width": 32, "max_words": 128}),
    ({"encoder": "vgg16"}, {"size_px": 448}, {}),
    ({"words": 2**18, "hidden_width": 512}, {}, {"beam_width": 1}),
]


@pytest.mark.parametrize(("architecture", "image", "search"), TOGETHER)
def test_what_is_allowed_alone_may_be_too_much_together(fields, architecture, image, search):
    asked = changed(fields, "architecture", **architecture)
    asked = changed(changed(asked, "image", **image), "search", **search)
    with pytest.raises(ValidationError, match=r"would take \d+ bytes, expected at most 536870912"):
        Manifest.model_validate(asked)


def test_what_the_tutorials_build_stays_far_below(fields):
    for encoder, features in (("vgg16", "grid"), ("vgg16", "vector"), ("resnet101", "grid")):
        about = {"encoder": encoder, "features": features, "decoder": "merge", "words": 10_000}
        asked = changed(fields, "architecture", **about, hidden_width=1024)
        asked = changed(changed(asked, "image", size_px=224), "search", beam_width=10)
        manifest = Manifest.model_validate(asked)
        assert working_bytes(manifest) < MOST_WORKING_BYTES / 2
        assert table_bytes(manifest.architecture) < MOST_WORKING_BYTES / 2


def test_what_a_client_is_shown_is_json(fields):
    manifest = Manifest.model_validate(changed(fields, "", scores={"dev": {"cider": None}}))
    assert json.loads(json.dumps(manifest.public(), allow_nan=False))["scores"]["dev"] == {
        "cider": None
    }


@pytest.mark.parametrize(
    "values",
    [
        *({"log_prob": n} for n in (float("nan"), float("-inf"), "x", None)),
        *({"tolerance": n} for n in (-0.1, 1.1, 1e9, float("nan"), float("inf"), None)),
        *({"caption": n} for n in ("a  dog", "a\n", "\ud800", "a " * 9999, 7)),
        {"unknown": 1},
    ],
)
def test_a_golden_caption_is_words_and_finite_numbers(values):
    said = {"caption": "a dog", "log_prob": -1.0, "tolerance": 0.05}
    Golden.model_validate(said)
    with pytest.raises(ValidationError):
        Golden.model_validate({**said, **values})
