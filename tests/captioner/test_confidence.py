"""The confidence model: what it reads, what it refuses, and that signals tell right from wrong."""

import numpy as np
import pytest
from safetensors.numpy import load, save

from app.captioner.confidence import SIGNALS, ConfidenceModel
from app.captioner.search import BeamArrays

V, W, A, P = 9, 6, 4, 2


def arrays(**changes):
    chance = np.random.default_rng(0)
    single = np.float32
    return {
        "attribute_AW": chance.normal(size=(A, W)).astype(np.float16),
        "attribute_bias_A": np.zeros(A, single),
        "word_attribute_V": np.array([-1, -1, -1, -1, 0, 1, 2, -1, -1]),
        "mean_W": np.zeros(W, single),
        "component_PW": np.eye(P, W, dtype=np.float16),
        "component_scale_P": np.ones(P, single),
        "residual_scale": np.ones(1, single),
        "signal_mean_S": np.zeros(len(SIGNALS), single),
        "signal_std_S": np.ones(len(SIGNALS), single),
        "weight_S": np.full(len(SIGNALS), 0.1, single),
        "bias": np.zeros(1, single),
        **changes,
    }


def beams(B=2, K=3, T=4, *, attention=True, classes=False):
    chance = np.random.default_rng(1)
    words = chance.integers(4, V, (B, K, T))
    word_log_probs = -chance.random((B, K, T)).astype(np.float32)
    log_probs = word_log_probs.sum(-1) - 0.5
    return BeamArrays(
        words,
        np.full((B, K), T),
        log_probs,
        log_probs / 2,
        word_log_probs,
        chance.dirichlet(np.ones(5), (B, K, T)).astype(np.float32) if attention else None,
        chance.normal(size=(B, W - 2 if classes else W)).astype(np.float32),
        chance.dirichlet(np.ones(2), B).astype(np.float32) if classes else None,
    )


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("classes", [True, False])
def test_every_candidate_gets_a_confidence(attention, classes):
    model = ConfidenceModel.read(save(arrays()), V)
    found = model.confidences(beams(attention=attention, classes=classes))
    assert found.shape == (2, 3)
    assert ((found > 0) & (found < 1)).all()


def test_an_image_has_the_same_confidence_alone_and_in_a_batch():
    model, several = ConfidenceModel.read(save(arrays()), V), beams()
    alone = BeamArrays(*(None if each is None else each[:1] for each in several))
    np.testing.assert_allclose(
        model.confidences(alone)[0], model.confidences(several)[0], atol=1e-6
    )


def test_a_slot_without_a_caption_has_finite_signals():
    model, found = ConfidenceModel.read(save(arrays()), V), beams()
    found.log_probs_BK[0, 2] = found.scores_BK[0, 2] = -np.inf
    found.lengths_BK[0, 2] = 0
    assert np.isfinite(model.signals(found)).all()


def test_surer_words_raise_the_confidence():
    model, found = ConfidenceModel.read(save(arrays()), V), beams()
    word_log_probs = found.word_log_probs_BKT * 0.1
    # by as much for every candidate, so that their shares stay what they are
    gained = (word_log_probs - found.word_log_probs_BKT).sum(-1)
    surer = found._replace(
        word_log_probs_BKT=word_log_probs, log_probs_BK=found.log_probs_BK + gained
    )
    weight_S = np.array([name.startswith(("mean log", "least log")) for name in SIGNALS], float)
    model = model._replace(weight_S=weight_S.astype(np.float32))
    assert (model.confidences(surer) > model.confidences(found)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"word_attribute_V": np.full(V, A - 1)}, "attributes that it does not have"),
        ({"word_attribute_V": np.zeros(V, np.float32)}, "attributes that it does not have"),
        ({"bias": np.zeros(2, np.float32)}, "its bias has the shape"),
        ({"bias": np.array([np.nan], np.float32)}, "NaN"),
        ({"signal_std_S": np.zeros(len(SIGNALS), np.float32)}, "not positive"),
        ({"attribute_AW": np.zeros(A, np.float32)}, "matrices are none"),
        ({"more": np.zeros(1, np.float32)}, "other arrays"),
    ],
)
def test_what_is_no_model_of_this_network_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ConfidenceModel.read(save(arrays(**changes)), V)


def test_a_model_of_other_words_is_refused():
    with pytest.raises(ValueError, match="word_attribute_V has the shape"):
        ConfidenceModel.read(save(arrays()), V + 1)


def test_cut_files_are_refused():
    content = save(arrays())
    assert load(content).keys() == set(ConfidenceModel._fields)
    with pytest.raises(ValueError, match="safetensors"):
        ConfidenceModel.read(content[:-3], V)
