"""Captions of a split as they are told."""

import pytest

from app.captioner.captions import Candidates, Caption
from app.captioner.pipeline import BatchResult
from app.captioner.presentation import Presentation
from support.tiny import data_directory
from trainer.data.flickr8k import read_split
from trainer.evaluation.captioning import caption_split, caption_texts


class Says:
    """Says one thing of every image."""

    def read(self, data, *, max_pixels):  # noqa: ARG002
        return data

    def caption(self, images):
        said = Candidates([Caption("a girl runs", -1.0, -0.5, ())])
        return BatchResult((said,) * len(images), {}, ())


@pytest.mark.parametrize(
    ("how", "said"), [(Presentation(), "a girl runs"), (Presentation(neutral=True), "a child runs")]
)
def test_a_split_is_captioned_as_it_would_be_told(tmp_path, how, said):
    data_directory(tmp_path, train=1, dev=3)
    texts = caption_texts(caption_split(Says(), read_split(tmp_path, "dev"), how))
    assert list(texts.values()) == [said] * 3
