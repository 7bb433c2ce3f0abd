"""The compiled search finds what `beam.search` finds: that one is the definition."""

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch

from app.captioner import beam, compiled, fused
from app.captioner.beam import SearchOptions
from app.captioner.folding import decoder_with_table
from app.captioner.network import Architecture, AttentionDecoder, MergeDecoder
from app.captioner.pipeline import Captioner
from app.captioner.vocabulary import BOS, EOS, PAD, UNK
from support.tiny import tiny_unpublished

COMPILER = shutil.which("cc") or shutil.which("gcc")
ROOT = Path(__file__).parents[2]
STEPS = Path(compiled.__file__).with_name("steps.c")
R, D = 5, 24
MARKS = {"bos": BOS, "eos": EOS, "banned": (PAD, UNK)}

needs_it = pytest.mark.skipif(not compiled.available(), reason="installed without a C compiler")


def test_an_installation_with_a_c_compiler_has_it():
    if COMPILER is None:
        pytest.skip("no C compiler")
    assert compiled.available()


def test_both_sides_name_the_same_fields():
    source = STEPS.read_text(encoding="utf-8")
    body = re.search(r"struct search \{(.*?)\n\};", source, re.DOTALL)[1]
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
    names = re.findall(r"\w+(?=[,;])", body)
    assert names == [name for name, _ in compiled._Search._fields_]
    assert f"MOST_BEAMS = {compiled._MOST_BEAMS} " in source
    lanes = int(re.search(r"LANES = (\d+),", source)[1])
    at_once = int(re.search(r"f32x8 sums\[(\d+)\]", source)[1])
    assert at_once * lanes == compiled._WIDTHS


def random_decoder(
    seed, *, words=40, width=64, whole_image=True, kind=AttentionDecoder, prepare=decoder_with_table
):
    """Make one whose words are anything but alike, and whose captions end."""
    torch.manual_seed(seed)
    architecture = Architecture(
        encoder="mobilenet_v2",
        features="grid",
        decoder="attention",
        words=words,
        embedding_width=16,
        hidden_width=width,
        whole_image=whole_image,
    )
    decoder = kind(architecture, D).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(3).add_(0.3 * torch.randn_like(parameter))
            parameter.copy_(parameter.half())
        decoder.words.bias[EOS] += 6
    return prepare(decoder).requires_grad_(requires_grad=False)


def features(images, seed=0):
    return torch.randn(images, R, D, generator=torch.Generator().manual_seed(seed))


def assert_the_same(found, expected):
    T = expected.words_BKT.shape[-1]
    assert found.words_BKT.shape == expected.words_BKT.shape
    holds = expected.scores_BK.isfinite()
    assert torch.equal(found.scores_BK.isfinite(), holds)
    assert torch.equal(found.lengths_BK[holds], expected.lengths_BK[holds])
    assert torch.equal(found.words_BKT[holds], expected.words_BKT[holds])
    said = torch.arange(T) <= expected.lengths_BK.unsqueeze(-1)
    for name in ("log_probs_BK", "scores_BK"):
        ours, theirs = getattr(found, name)[holds], getattr(expected, name)[holds]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    for name in ("word_log_probs_BKT", "attention_BKTR"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        these = said & holds.unsqueeze(-1)
        torch.testing.assert_close(ours[these], theirs[these], rtol=0, atol=1e-4)


@needs_it
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "options",
    [
        SearchOptions(),
        SearchOptions(beam_width=1, max_words=7),
        SearchOptions(beam_width=3, min_words=3, max_words=16, no_repeat_ngram_size=2),
        SearchOptions(beam_width=5, max_words=9, no_repeat_ngram_size=3, length_penalty=0.0),
        SearchOptions(beam_width=16, min_words=0, max_words=4, length_penalty=1.0),
        SearchOptions(beam_width=2, min_words=1, max_words=1),
    ],
    ids=str,
)
def test_captions_are_those_of_the_definition(options, seed):
    decoder, images = random_decoder(seed, whole_image=seed % 2 == 0), features(7, seed)
    assert compiled.suits(decoder, options)
    found = compiled.search(decoder, images, options, **MARKS)
    assert_the_same(found, beam.search(decoder, images, options, **MARKS))


@needs_it
def test_lengths_differ_in_these_searches_so_that_rows_come_and_go():
    found = compiled.search(random_decoder(0), features(7), SearchOptions(), **MARKS)
    assert len(found.lengths_BK[:, 0].unique()) > 1
    assert len(found.lengths_BK.unique()) > 3


@needs_it
def test_fewer_captions_than_beams_leave_slots_empty():
    decoder, options = random_decoder(1, words=6), SearchOptions(beam_width=5, max_words=1)
    found = compiled.search(decoder, features(3), options, **MARKS)
    assert found.scores_BK.isneginf().sum(1).tolist() == [3, 3, 3]  # two words can be said
    assert_the_same(found, beam.search(decoder, features(3), options, **MARKS))


@needs_it
def test_a_caption_is_the_same_bit_by_bit_alone_and_in_company():
    prepare = partial(fused._fused_decoder, dtype=torch.float32)
    decoder, images = random_decoder(2, prepare=prepare), features(9)
    together = compiled.search(decoder, images, SearchOptions(), **MARKS)
    for b in range(9):
        alone = compiled.search(decoder, images[b : b + 1], SearchOptions(), **MARKS)
        assert torch.equal(alone.scores_BK[0], together.scores_BK[b])
        T = alone.words_BKT.shape[-1]
        assert torch.equal(alone.words_BKT[0], together.words_BKT[b, :, :T])


@needs_it
@pytest.mark.parametrize("at_call", [0, 5, 12, 30])
def test_whom_nobody_waits_for_leaves_and_the_others_stay_what_they_are(at_call):
    decoder, images, options = random_decoder(3), features(4), SearchOptions()
    asked = []

    def wanted(b):
        asked.append(b)
        return not (b in {1, 2} and len(asked) > at_call)

    found = compiled.search(decoder, images, options, **MARKS, wanted=wanted)
    whole = compiled.search(decoder, images, options, **MARKS)
    assert_the_same(take(found, [0, 3]), take(whole, [0, 3]))
    assert asked[:3] == [0, 1, 2]


def take(beams, images):
    """Keep these images, and of them no more steps than they have."""
    some = beam.Beams(*(part[images] for part in beams))
    T = int(some.lengths_BK.max()) + 1
    cut = {name: getattr(some, name)[:, :, :T] for name in ("words_BKT", "word_log_probs_BKT")}
    return some._replace(**cut, attention_BKTR=some.attention_BKTR[:, :, :T])


@needs_it
def test_nobody_waits_for_anybody():
    decoder, options = random_decoder(4), SearchOptions()
    found = compiled.search(decoder, features(3), options, **MARKS, wanted=lambda _: False)
    assert found.words_BKT.shape == (3, 3, 1)
    assert found.scores_BK[:, 1:].isneginf().all()


@needs_it
def test_other_layers_in_place_of_linear_ones_will_do():
    decoder, images = random_decoder(5), features(3)
    expected = beam.search(decoder, images, SearchOptions(), **MARKS)
    for name in ("recurrent_gates", "query", "context"):
        decoder.set_submodule(name, fused._Linear(decoder.get_submodule(name), torch.float32))
    decoder.words = fused._WordScores(decoder.words, torch.float32)
    assert_the_same(compiled.search(decoder, images, SearchOptions(), **MARKS), expected)


@needs_it
def test_what_it_would_misread_is_refused():
    decoder, options = random_decoder(0), SearchOptions()
    with pytest.raises(ValueError, match="float64"):
        compiled.search(decoder, features(2).double(), options, **MARKS)
    for wrong in ({"eos": 40}, {"bos": -1}, {"banned": (PAD, 99)}):
        with pytest.raises(ValueError, match="none of the 40 words"):
            compiled.search(decoder, features(2), options, **(MARKS | wrong))


def of_gcc(library):
    """Give the path of a library that gcc brings; without a path it has none."""
    asked = [shutil.which("gcc") or "false", f"-print-file-name={library}"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


@pytest.mark.slow
def test_it_touches_no_memory_but_its_own(tmp_path):
    if not Path(sanitizer := of_gcc("libasan.so")).is_absolute():
        pytest.skip("no gcc with its sanitizers")
    library = tmp_path / "steps.so"
    flags = ["-O1", "-g", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    checks.append("-fno-sanitize=alignment")  # the vectors say themselves that they need none
    compiler = shutil.which("gcc")
    subprocess.run([compiler, *flags, *checks, "-o", library, STEPS, "-lm"], check=True)
    ran = subprocess.run(
        [sys.executable, Path(__file__).with_name("sanitized.py"), library],
        env={
            **os.environ,
            "LD_PRELOAD": f"{sanitizer} {of_gcc('libstdc++.so.6')}",
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent))),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.strip() == "searched", ran.stderr[:2000]


def test_what_cannot_be_loaded_counts_as_not_compiled(tmp_path, monkeypatch):
    suffix = EXTENSION_SUFFIXES[0]
    (tmp_path / f"steps{suffix}").write_bytes(b"made for another system")
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "compiled.py"))
    assert compiled._library.__wrapped__() is None


def test_it_does_not_suit_everything():
    options = SearchOptions()
    assert not compiled.suits(random_decoder(0, kind=MergeDecoder), options)
    assert not compiled.suits(random_decoder(0, width=48), options)
    assert not compiled.suits(random_decoder(0).train(), options)
    assert not compiled.suits(random_decoder(0), SearchOptions(beam_width=17))
    assert not compiled.suits(random_decoder(0, words=8), SearchOptions(beam_width=9))


@needs_it
def test_a_captioner_searches_with_it_and_without_it_says_the_same(monkeypatch):
    captioner = Captioner(tiny_unpublished(hidden_width=64))
    images = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(3)]
    calls, original = [], compiled.search
    monkeypatch.setattr(compiled, "search", lambda *a, **k: calls.append(1) or original(*a, **k))
    ours = captioner.caption(images)
    assert calls
    monkeypatch.setattr(compiled, "_library", lambda: None)
    theirs = captioner.caption(images)
    assert len(calls) == 1
    for one, other in zip(ours, theirs, strict=True):
        assert [c.text for c in one] == [c.text for c in other]
        assert [c.log_prob for c in one] == pytest.approx([c.log_prob for c in other], abs=1e-4)
