"""The interval of the difference of two accuracies."""

import numpy as np
import pytest

from tfsimclr.evaluation import intervals

pytestmark = pytest.mark.quick


def cells(both, only_a, only_b, neither):
    """Returns correct_a and correct_b of images with these counts."""
    counts = (both, only_a, only_b, neither)
    a = np.repeat([True, True, False, False], counts)
    b = np.repeat([True, False, True, False], counts)
    return a, b


def test_it_is_the_formula_of_agresti_and_min():
    # Half an image more in each cell: 30.5 and 10.5 of 102 images differ.
    value, low, high = intervals.paired_difference(*cells(40, 30, 10, 20))
    center = 20 / 102
    half = 1.959964 * np.sqrt((41 / 102 - center**2) / 102)
    assert value == pytest.approx(0.2)
    assert low == pytest.approx(center - half, abs=1e-6)
    assert high == pytest.approx(center + half, abs=1e-6)


def test_a_and_b_change_places():
    a, b = cells(40, 30, 10, 20)
    there, back = intervals.paired_difference(a, b), intervals.paired_difference(b, a)
    assert there == pytest.approx((-back.value, -back.high, -back.low))


def test_images_on_which_both_agree_do_not_count_much():
    paired = intervals.paired_difference(*cells(480, 30, 10, 480))
    rng = np.random.default_rng(0)
    a, b = cells(480, 30, 10, 480)
    independent = intervals.paired_difference(a, rng.permutation(b))
    assert paired.low > 0 > independent.low


@pytest.mark.parametrize("both", [0, 20])
def test_equal_predictions_leave_some_doubt(both):
    value, low, high = intervals.paired_difference(*cells(both, 0, 0, 20 - both))
    assert value == 0
    assert -0.2 < low < 0 < high < 0.2


def test_the_interval_covers_the_true_difference():
    """In 95 % of test sets, also where few images differ."""
    rng = np.random.default_rng(0)
    for shares in ((0.4, 0.2, 0.1, 0.3), (0.9, 0.03, 0.01, 0.06)):
        covered = 0
        for counts in rng.multinomial(200, shares, size=2000):
            _, low, high = intervals.paired_difference(*cells(*counts))
            covered += low <= shares[1] - shares[2] <= high
        assert 0.93 < covered / 2000 < 0.985


def test_it_agrees_with_the_bootstrap():
    a, b = cells(400, 90, 60, 450)
    _, low, high = intervals.paired_difference(a, b)
    draws = np.random.default_rng(0).multinomial(1000, [0.4, 0.09, 0.06, 0.45], 20000)
    expected = np.percentile((draws[:, 1] - draws[:, 2]) / 1000, [2.5, 97.5])
    np.testing.assert_allclose([low, high], expected, atol=2e-3)
