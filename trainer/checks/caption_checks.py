"""Checks of captions and their words: each takes a scan and yields findings."""

from collections import Counter
from collections.abc import Callable, Iterator

from app.captioner.vocabulary import TOKENISER
from trainer.checks.directory_scan import DirectoryScan
from trainer.checks.findings import Finding, count_images, some

MIN_COUNT = 5  # the default of a recipe's vocabulary.min_count
LONG_WORDS = 20  # the default of a recipe's vocabulary.max_words
GLUED_WORDS = 50


def wordless_captions(scan: DirectoryScan) -> Iterator[Finding]:
    """Captions without a letter or digit teach silence."""
    for split in scan.lists:
        empty = [
            image for image, text in scan.captions_of(split) if not scan.tokeniser.tokenise(text)
        ]
        if empty:
            yield Finding(
                "error",
                f"{len(empty)} captions of {split} hold no word: of {some(empty)}",
                "write a caption or remove the line",
            )


def long_captions(scan: DirectoryScan) -> Iterator[Finding]:
    """Captions that training would cut, and those that look like several lines in one."""
    for split in scan.lists:
        words = [
            (len(scan.tokeniser.tokenise(text)), image) for image, text in scan.captions_of(split)
        ]
        cut = sum(count > LONG_WORDS for count, _ in words)
        glued = [image for count, image in words if count > GLUED_WORDS]
        if glued or cut * 20 > len(words):
            longest, image = max(words)
            yield Finding(
                "note",
                f"{cut} of {len(words)} captions of {split} are longer than {LONG_WORDS} words, "
                f"the longest has {longest} ({image})",
                "shorten them, or raise vocabulary.max_words and search.max_words in the recipe",
            )


def other_tokeniser(scan: DirectoryScan) -> Iterator[Finding]:
    """Captions whose words the tokeniser of English would cut to pieces."""
    if scan.captions and scan.tokeniser.name != TOKENISER:
        yield Finding(
            "note",
            f"{TOKENISER}, the tokeniser of English, would cut words of these captions, or finds "
            "no spaces between them",
            f"set vocabulary.tokeniser to {scan.tokeniser.name}, as own-photos.toml does",
        )


def few_words(scan: DirectoryScan) -> Iterator[Finding]:
    """Words that occur too rarely to be learned."""
    counts = Counter(
        word for _, text in _training_captions(scan) for word in scan.tokeniser.tokenise(text)
    )
    frequent = sum(count >= MIN_COUNT for count in counts.values())
    unknown = sum(count for count in counts.values() if count < MIN_COUNT)
    if counts and (frequent < 100 or unknown * 10 > counts.total()):
        yield Finding(
            "note",
            f"of {len(counts)} words in train {frequent} occur at least {MIN_COUNT} times; the "
            f"others make up {100 * unknown / counts.total():.0f} % of the text",
            "write more captions, or lower vocabulary.min_count in the recipe",
        )


def repeated_captions(scan: DirectoryScan) -> Iterator[Finding]:
    """One sentence for many images teaches the network to say it always."""
    images: dict[str, set[str]] = {}
    for image, text in _training_captions(scan):
        images.setdefault(" ".join(scan.tokeniser.tokenise(text)), set()).add(image)
    enough = max(3, len(scan.lists.get("train", ())) // 20)
    often = {text: len(of) for text, of in images.items() if len(of) >= enough}
    if often:
        text = max(often, key=lambda each: often[each])
        yield Finding(
            "note",
            f"{len(often)} captions stand under {enough} images of train or more, "
            f"{text!r} under {often[text]}",
            "say what tells these images apart, or the network will not",
        )


def single_captions(scan: DirectoryScan) -> Iterator[Finding]:
    """Images that only one sentence describes."""
    train = scan.lists.get("train", ())
    single = [name for name in train if len(scan.captions.get(name, ())) == 1]
    if single and len(single) * 2 > len(train):
        yield Finding(
            "note",
            f"{len(single)} of {count_images(train)} of train with one caption only",
            "let several people describe each, Flickr8k has five",
        )


def _training_captions(scan: DirectoryScan) -> list[tuple[str, str]]:
    return scan.captions_of("train") if "train" in scan.lists else []


CHECKS: tuple[Callable[[DirectoryScan], Iterator[Finding]], ...] = (
    wordless_captions,
    long_captions,
    other_tokeniser,
    few_words,
    repeated_captions,
    single_captions,
)
