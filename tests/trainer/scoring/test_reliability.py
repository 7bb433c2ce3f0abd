"""What confidences are worth, by numbers counted by hand."""

import numpy as np
import pytest

from trainer.scoring.reliability import reliability, risk_and_coverage


def test_figures_by_hand():
    confidence_N = np.array([0.95, 0.85, 0.25, 0.15])
    right_N = np.array([True, True, False, True])
    found = reliability(confidence_N, right_N)
    assert found.auroc == pytest.approx(2 / 3)
    assert found.calibration_error == pytest.approx((0.05 + 0.15 + 0.25 + 0.85) / 4)
    assert (found.coverage, found.wrong_told, found.right) == (0.5, 0.0, 0.75)
    assert [count for count, _, _ in found.bins] == [1, 1, 1, 1]
    assert risk_and_coverage(confidence_N, right_N) == [
        (0.25, 0.0),
        (0.5, 0.0),
        (0.75, pytest.approx(1 / 3)),
        (1.0, 0.25),
    ]


def test_where_all_are_wrong_nothing_can_be_ranked():
    found = reliability(np.array([0.1, 0.2]), np.array([False, False]))
    assert found.auroc is None
    assert found.wrong_told is None
    assert found.as_dict()["wrong"] == 1


def test_a_confidence_of_one_falls_into_the_last_bin():
    assert reliability(np.array([1.0]), np.array([True])).bins == ((1, 1.0, 1.0),)
