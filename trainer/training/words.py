"""The captions of a split -> the words that a network knows, as its recipe asks for."""

from dataclasses import replace

from tqdm import tqdm

from app.captioner.tokenisers import UNICODE_WORDS, fitting
from app.captioner.vocabulary import Sentences, Vocabulary
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


def with_new_words(known: Vocabulary, options: VocabularyOptions, train: Split) -> Vocabulary:
    """Keep the words of a checkpoint, with their ids, and add those of the training captions.

    Captions are taken apart and written as the checkpoint's are, whatever the options say.
    """
    written = "words" if known.sentences is None else "sentences"
    ours = options.model_copy(update={"tokeniser": known.tokeniser, "written": written})
    learnt = learn_vocabulary(ours, train)
    there = set(known.words)
    words = (*known.words, *(word for word in learnt.words if word not in there))
    return Vocabulary(words, known.tokeniser, _both(known.sentences, learnt.sentences))


def _both(known: Sentences | None, learnt: Sentences | None) -> Sentences | None:
    if known is None or learnt is None:
        return known
    return replace(known, forms={**learnt.forms, **known.forms})
