"""Searches with a build of steps.c that ends the process at the first foreign byte it touches.

Run by test_compiled.py with the sanitizer's library loaded first: python sanitized.py STEPS.so
"""

import ctypes
import sys

from test_compiled import MARKS, features, random_decoder

from app.captioner import compiled
from app.captioner.beam import SearchOptions


def main(library: str) -> None:
    compiled._library = lambda: ctypes.CDLL(library)
    for seed, options in enumerate(
        [
            SearchOptions(no_repeat_ngram_size=2),
            SearchOptions(beam_width=16, min_words=0, max_words=4),
            SearchOptions(beam_width=1, max_words=1),
            SearchOptions(beam_width=5, max_words=30, min_words=30, no_repeat_ngram_size=3),
        ]
    ):
        for images, words, width in [(1, 40, 32), (7, 43, 64)]:
            decoder = random_decoder(seed, words=words, width=width, whole_image=bool(seed % 2))
            compiled.search(decoder, features(images), options, **MARKS)
            few = [images * 5]

            def wanted(b, few=few):
                few[0] -= 1
                return few[0] > 0 or b == 0

            compiled.search(decoder, features(images), options, **MARKS, wanted=wanted)
    print("searched")


if __name__ == "__main__":
    main(sys.argv[1])
