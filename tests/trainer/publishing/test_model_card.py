"""What the card says of scores, whichever version computed them."""

import pytest

from support.tiny import tiny_unpublished
from trainer.publishing.model_card import card
from trainer.scoring.scores import score


@pytest.mark.parametrize("name", ["caption_statistics", "habits"])
def test_the_card_counts_words_under_either_name_of_the_statistics(name):
    captions = {"a": "a red dog", "b": "a cat"}
    values = score(captions, {image: (text,) for image, text in captions.items()}).as_dict()
    values[name] = values.pop("caption_statistics")
    unpublished = tiny_unpublished()
    manifest = unpublished.manifest.model_copy(update={"scores": {"dev": values}})
    assert "distinct_captions 2, words_used 4" in card(unpublished._replace(manifest=manifest), "")
