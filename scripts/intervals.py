"""Confidence intervals of a mean over few seeds."""

import pandas as pd

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom.
T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def half_width(values: pd.Series) -> float:
    """Returns half the width of the mean's 95 % interval, NaN for under two values."""
    count = len(values)
    if count < 2:
        return float("nan")
    quantile = T95[count - 2] if count - 2 < len(T95) else 1.960
    return quantile * values.std() / count**0.5
