"""How good confidences are: ranking (AUROC), calibration (ECE), and what withholding brings.

N captions
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

BINS = 10
ADVISED = 0.5
"""The least confidence that is advised."""


@dataclass(frozen=True)
class Reliability:
    """What confidences of some captions are worth.

    Attributes:
        captions: how many.
        right: share of them that are right.
        auroc: chance that a right one has a higher confidence than a wrong one; None where all are
            alike.
        calibration_error: expected calibration error, mean distance of confidence and share right
            over ten bins of equal width (Guo et al. 2017, eq. 3).
        coverage: share that is told at `ADVISED`.
        wrong_told: share of wrong ones among those told; None where none is told.
        bins: captions, mean confidence and share right of every bin that has any, lowest first.
    """

    captions: int
    right: float
    auroc: float | None
    calibration_error: float
    coverage: float
    wrong_told: float | None
    bins: tuple[tuple[int, float, float], ...]

    def as_dict(self) -> dict[str, Any]:
        """Give rounded numbers for a manifest."""
        return {
            name: _rounded(getattr(self, name))
            for name in ("captions", "right", "auroc", "calibration_error", "coverage")
        } | {
            "wrong": round(1 - self.right, 4),
            "wrong_told": _rounded(self.wrong_told),
            "bins": [
                [n, round(confidence, 4), round(right, 4)] for n, confidence, right in self.bins
            ],
        }


def reliability(
    confidence_N: npt.NDArray[np.floating[Any]], right_N: npt.NDArray[np.bool_]
) -> Reliability:
    """Compare confidences with what was right."""
    count = len(right_N)
    several = 0 < right_N.sum() < count
    place_N = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
    bins = tuple(
        (int(here.sum()), float(confidence_N[here].mean()), float(right_N[here].mean()))
        for here in (place_N == n for n in range(BINS))
        if here.any()
    )
    error = sum(n * abs(confidence - right) for n, confidence, right in bins) / max(count, 1)
    told_N = confidence_N >= ADVISED
    return Reliability(
        captions=count,
        right=float(right_N.mean()),
        auroc=float(roc_auc_score(right_N, confidence_N)) if several else None,
        calibration_error=float(error),
        coverage=float(told_N.mean()),
        wrong_told=float(1 - right_N[told_N].mean()) if told_N.any() else None,
        bins=bins,
    )


def risk_and_coverage(
    confidence_N: npt.NDArray[np.floating[Any]], right_N: npt.NDArray[np.bool_]
) -> list[tuple[float, float]]:
    """Give (coverage, share wrong) as the least confidence falls from 1 to 0.

    Reference: Geifman and El-Yaniv 2017, "Selective classification for deep neural networks".
    """
    order = np.argsort(-confidence_N, kind="stable")
    wrong_N = np.cumsum(~right_N[order]) / np.arange(1, len(order) + 1)
    return [((n + 1) / len(order), float(share)) for n, share in enumerate(wrong_N)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
