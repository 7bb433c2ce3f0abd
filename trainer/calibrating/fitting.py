"""A checkpoint and data of several kinds -> a confidence model and what it is worth.

N captions, S signals, B images, K candidates, W width of what is known of an image, P principal
components
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from tqdm import tqdm

from app.captioner.architecture import attention_rows
from app.captioner.captions import to_captions
from app.captioner.checkpoint import Checkpoint
from app.captioner.confidence import SIGNALS, ConfidenceModel, known
from app.captioner.engines.engine import Engine
from app.captioner.image.decode import Pixels
from app.captioner.search import BeamArrays, always_waiting
from trainer.calibrating.attributes import Attributes, fit_attributes
from trainer.calibrating.no_photos import no_photos
from trainer.errors import TrainerError
from trainer.scoring.reliability import ADVISED, Reliability, reliability
from trainer.scoring.things import things

NO_PHOTOS = "no photos"
COMPONENTS = 64
DRAWN = 195
DRAWN_TO_LEARN = 650
FEWEST = 40
"""Captions that are right, and that are wrong, of all dev images together."""
_BATCH = 8
_FOLDS = 5
_REGULARISATION = 1.0
_OTHER_CANDIDATES = 0.3
"""How much a candidate that is not the best counts in the fit."""

Floats = npt.NDArray[np.float32]


class Domain(NamedTuple):
    """Images of one kind with what people said about them.

    Attributes:
        name: of the kind.
        squares: uint8 ``(S, S, 3)`` each, as the network sees them.
        references: captions of each; none of a picture of which every caption is wrong.
    """

    name: str
    squares: Sequence[Pixels]
    references: Sequence[Sequence[str]]


class Fitted(NamedTuple):
    """A confidence model.

    Attributes:
        content: of ``confidence.safetensors``.
        by_domain: what it is worth on each kind of image, measured on images that it was not
            fitted to (five-fold cross-validation).
        home_against_no_photos: chance that a photo of the first domain has a higher confidence
            than a picture that is no photo.
    """

    content: bytes
    by_domain: dict[str, Reliability]
    home_against_no_photos: float


class _Told(NamedTuple):
    """Captions of a domain: their signals, whether they are right, and of which image."""

    signals_NS: Floats
    right_N: npt.NDArray[np.bool_]
    is_best_N: npt.NDArray[np.bool_]
    image_N: npt.NDArray[np.int64]


def fit_confidence(
    checkpoint: Checkpoint,
    engine: Engine,
    training: Domain,
    domains: Sequence[Domain],
) -> Fitted:
    """Fit a confidence model.

    Args:
        checkpoint: whose captions are to be trusted.
        engine: of this checkpoint.
        training: images that the network was trained on, for attributes and distances.
        domains: images that it was not trained on, the kind it is made for first.

    Raises:
        TrainerError: fewer than `FEWEST` captions of photos are right, or wrong.
    """
    size_px = checkpoint.manifest.image.size_px
    known_NW = _known(engine, training.squares, training.name)
    others = no_photos(DRAWN_TO_LEARN, size_px=size_px, seed=2, kinds=slice(None, None, 2))
    others_MW = _known(engine, others, NO_PHOTOS)  # half of the kinds: real ones are others too
    attributes = fit_attributes(
        known_NW, training.references, others_MW, checkpoint.vocabulary, things()
    )
    unfitted = _unfitted(known_NW, attributes)
    drawn = no_photos(DRAWN, size_px=size_px, seed=1)
    everything = [*domains, Domain(NO_PHOTOS, drawn, [()] * len(drawn))]
    told = [_told(engine, checkpoint, unfitted, domain) for domain in everything]
    _check_enough(told[:-1])
    held_out = _cross_validated(told)
    by_domain = {
        domain.name: reliability(confidence_N[each.is_best_N], each.right_N[each.is_best_N])
        for domain, each, confidence_N in zip(everything, told, held_out, strict=True)
    }
    ends = [held_out[n][told[n].is_best_N] for n in (0, -1)]
    is_home_N = np.repeat([True, False], [len(each) for each in ends])
    apart = reliability(np.concatenate(ends), is_home_N).auroc
    model = unfitted._replace(**_regression(*_joined(told))._asdict())
    arrays = {name: np.ascontiguousarray(_small(each)) for name, each in model._asdict().items()}
    return Fitted(save(arrays), by_domain, apart or 0.0)


def _check_enough(told: Sequence[_Told]) -> None:
    """Refuse what would learn a dozen signals from a handful of captions by heart."""
    right_N = np.concatenate([each.right_N[each.is_best_N] for each in told])
    right, wrong = int(right_N.sum()), int((~right_N).sum())
    if min(right, wrong) < FEWEST:
        raise TrainerError(
            f"no confidence can be fitted: of the captions of dev images {right} are right and "
            f"{wrong} wrong, and it takes {FEWEST} of each"
        )


def _small(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Give matrices in half precision."""
    return array.astype(np.float16) if array.ndim > 1 else array


def _searched(engine: Engine, squares: Sequence[Pixels], title: str) -> Iterator[BeamArrays]:
    for start in tqdm(range(0, len(squares), _BATCH), f"captions {title}", unit="batch"):
        beams = engine.run(squares[start : start + _BATCH], always_waiting).beams
        if beams is None:
            raise TrainerError("the network says nothing of an image")
        yield beams


def _known(engine: Engine, squares: Sequence[Pixels], title: str) -> Floats:
    return np.concatenate([known(beams) for beams in _searched(engine, squares, title)])


def _unfitted(known_NW: Floats, attributes: Attributes) -> ConfidenceModel:
    """Give a model whose regression is still missing."""
    components = min(COMPONENTS, *(each - 1 for each in known_NW.shape))
    found = PCA(max(components, 1), random_state=0).fit(known_NW)
    off_NW = known_NW - found.inverse_transform(found.transform(known_NW))
    residual = float(np.sqrt((off_NW**2).sum(1).mean()))
    S, single = len(SIGNALS), np.float32
    return ConfidenceModel(
        attribute_AW=attributes.weight_AW,
        attribute_bias_A=attributes.bias_A,
        word_attribute_V=attributes.word_attribute_V,
        mean_W=found.mean_.astype(single),
        component_PW=found.components_.astype(single),
        component_scale_P=np.sqrt(np.maximum(found.explained_variance_, 1e-8)).astype(single),
        residual_scale=np.array([max(residual, 1e-6)], single),
        signal_mean_S=np.zeros(S, single),
        signal_std_S=np.ones(S, single),
        weight_S=np.zeros(S, single),
        bias=np.zeros(1, single),
    )


def _told(engine: Engine, checkpoint: Checkpoint, model: ConfidenceModel, domain: Domain) -> _Told:
    table, image = things(), 0
    lie = attention_rows(checkpoint.manifest.architecture)
    rows: list[tuple[Floats, bool, bool, int]] = []
    for beams in _searched(engine, domain.squares, domain.name):
        signals_BKS = model.signals(beams)
        for b, candidates in enumerate(to_captions(beams, checkpoint.vocabulary, rows=lie)):
            references = domain.references[image]
            for k, caption in enumerate(candidates):  # they are the first slots, best first
                is_right = table.is_right(caption.text, references)
                rows.append((signals_BKS[b, k], is_right, k == 0, image))
            image += 1
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return _Told(*columns)


def _joined(
    told: Sequence[_Told],
) -> tuple[Floats, npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    weights = [np.where(each.is_best_N, 1.0, _OTHER_CANDIDATES) for each in told]
    signals_NS = np.concatenate([each.signals_NS for each in told])
    return signals_NS, np.concatenate([each.right_N for each in told]), np.concatenate(weights)


class _Regression(NamedTuple):
    """A logistic regression over standardised signals."""

    signal_mean_S: Floats
    signal_std_S: Floats
    weight_S: Floats
    bias: Floats

    def confidences(self, signals_NS: Floats) -> Floats:
        """Do as `ConfidenceModel.confidences`."""
        inputs_NS = np.clip((signals_NS - self.signal_mean_S) / self.signal_std_S, -8, 8)
        found_N: Floats = 1 / (1 + np.exp(-(inputs_NS @ self.weight_S + self.bias)))
        return found_N


def _regression(
    signals_NS: Floats, right_N: npt.NDArray[np.bool_], weight_N: npt.NDArray[np.float64]
) -> _Regression:
    if right_N.all() or not right_N.any():
        raise TrainerError("no confidence can be fitted: all captions are right, or all are wrong")
    mean_S, std_S = signals_NS.mean(0), signals_NS.std(0) + 1e-3
    inputs_NS = np.clip((signals_NS - mean_S) / std_S, -8, 8)
    fitted = LogisticRegression(C=_REGULARISATION, max_iter=1000)
    fitted.fit(inputs_NS, right_N, sample_weight=weight_N)
    found = (mean_S, std_S, fitted.coef_[0], fitted.intercept_)
    return _Regression(*(each.astype(np.float32) for each in found))


def _cross_validated(told: Sequence[_Told]) -> list[Floats]:
    """Give the confidence of every caption by a regression that did not see its image."""
    signals_NS, right_N, weight_N = _joined(told)
    starts = np.cumsum([0, *(1 + int(each.image_N.max()) for each in told)])
    image_N = np.concatenate(
        [each.image_N + start for each, start in zip(told, starts, strict=False)]
    )
    found_N = np.zeros(len(right_N), np.float32)
    for fitted, held in GroupKFold(_FOLDS).split(signals_NS, right_N, image_N):
        regression = _regression(signals_NS[fitted], right_N[fitted], weight_N[fitted])
        found_N[held] = regression.confidences(signals_NS[held])
    ends = np.cumsum([len(each.right_N) for each in told])[:-1]
    return np.split(found_N, ends)


def confidence_table(fitted: Fitted) -> str:
    """Give what a confidence model is worth as plain text."""
    lines = [
        f"{'confidence':<18}{'captions':>9}{'right':>7}{'AUROC':>7}{'ECE':>7}{'told':>7}{'wrong':>7}"
    ]
    for name, found in fitted.by_domain.items():
        auroc = "" if found.auroc is None else f"{found.auroc:.3f}"
        wrong = "" if found.wrong_told is None else f"{found.wrong_told:.3f}"
        lines.append(
            f"{name[:17]:<18}{found.captions:>9}{found.right:>7.3f}{auroc:>7}"
            f"{found.calibration_error:>7.3f}{found.coverage:>7.3f}{wrong:>7}"
        )
    told = f"told: confidence {ADVISED} and more; wrong: share of wrong ones among them"
    return "\n".join(
        [
            *lines,
            f"{told}; {_FOLDS}-fold cross-validation",
            f"photos at home against no photos: AUROC {fitted.home_against_no_photos:.3f}",
        ]
    )


def scores_of(fitted: Fitted) -> dict[str, object]:
    """Give what a manifest says of a confidence model."""
    return {
        "by_domain": {name: found.as_dict() for name, found in fitted.by_domain.items()},
        "home_against_no_photos": round(fitted.home_against_no_photos, 4),
        "advised_min_confidence": ADVISED,
        "measured": f"{_FOLDS}-fold cross-validation over the images of all domains",
    }
