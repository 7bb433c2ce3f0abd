"""The captions of a split -> the words that a network knows, as its recipe asks for."""

from tqdm import tqdm

from app.captioner.tokenisers import UNICODE_WORDS, fitting
from app.captioner.vocabulary import Vocabulary
from trainer.data.flickr8k import Split
from trainer.training.recipe import VocabularyOptions


def learn_vocabulary(options: VocabularyOptions, train: Split) -> Vocabulary:
    """Learn the words of the training captions, and how people write them.

    Warns where the recipe's tokeniser would cut words of these captions to pieces.
    """
    texts = [text for example in train.examples for text in example.captions]
    if options.tokeniser != UNICODE_WORDS and fitting(texts) == UNICODE_WORDS:
        tqdm.write(
            f"warning: the tokeniser {options.tokeniser} cuts words of these captions, or finds no "
            f"spaces between them: --set vocabulary.tokeniser={UNICODE_WORDS} keeps them"
        )
    return Vocabulary.learn(
        texts,
        at_least=options.min_count,
        tokeniser_name=options.tokeniser,
        sentences=options.written == "sentences",
    )
