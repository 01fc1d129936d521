"""The table of scores without labels, against loops and closed forms."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import report_runs
import scipy.stats

from tfsimclr.errors import UserError
from tfsimclr.study import label_free_table as table

pytestmark = pytest.mark.quick


def test_correlation_is_spearmans_with_an_interval_around_it():
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    y = x + rng.normal(size=40)
    value, low, high = table.correlation(x, y)
    assert value == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert low < value < high and high - low < 0.7
    assert table.correlation(x, np.exp(x))[0] == pytest.approx(1)
    assert table.correlation(x, -x) == pytest.approx((-1, -1, -1))


def test_a_constant_has_no_correlation():
    assert all(map(math.isnan, table.correlation(np.ones(9), np.arange(9))))
    with_gap = table.correlation([1, 2, math.nan, 4, 5], [1, 2, 3, 4, 5])
    assert with_gap[0] == pytest.approx(1)


def test_lidar_counts_the_directions_in_which_images_differ():
    rng = np.random.default_rng(0)
    noise = 1e-3 * rng.normal(size=(4000, 6, 8))
    centers = np.zeros((4000, 1, 8))
    centers[..., :3] = rng.normal(size=(4000, 1, 3))
    assert table.lidar(centers + noise) == pytest.approx(3, rel=0.03)
    # Views that do not tell images apart: no direction is better than another.
    assert table.lidar(rng.normal(size=(4000, 6, 8))) == pytest.approx(8, rel=0.03)


def test_the_page_and_the_rows(tmp_path, capsys):
    folders = []
    for number in range(6):
        result = report_runs.result()
        score = 0.3 + 0.1 * number
        result["features"]["h"]["top1"] = score
        free = dict(result["label_free"]["features"])
        free["h"] = {**report_runs.SCORES, "retrieval_auc": score, "rankme": -score}
        changes = {
            "num_images": {"train": 100, "test": 60},
            "label_free": {**result["label_free"], "features": free},
            "features": result["features"],
        }
        folders.append(report_runs.write_run(tmp_path / f"run{number}", **changes))
        (folders[-1] / "lidar.json").write_text(json.dumps(3.0))
    table.main([*map(str, folders), f"--out={tmp_path / 'out'}", "--note=A note."])
    page = (tmp_path / "out/label_free.md").read_text("utf-8")
    assert "| retrieval AUC of h | +1.00 [+1.00, +1.00] |" in page
    assert "| RankMe of h | −1.00 [−1.00, −1.00] |" in page
    assert "| LiDAR of h | – |" in page  # the same for all
    assert "Group 1: 6 runs on folder, 100 images for 3 epochs" in page
    assert "A note." in page and "6 runs of simclr" in page
    rows = pd.read_csv(tmp_path / "out/runs.csv")
    assert rows["linear_h"].tolist() == pytest.approx([0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    # Pixels have 0.4 and the untrained encoder 0.5; the verdict of all runs is yes.
    assert "3 of 6 runs have learned by the verdict and a linear top-1" in page
    assert (
        "0 neither, 3 only the first (run2, run1, run0) and 0 only the second" in page
    )
    assert page in capsys.readouterr().out


def test_a_run_without_labels_is_refused(tmp_path):
    folder = report_runs.write_run(tmp_path / "run", features={}, class_names=[])
    with pytest.raises(UserError, match="no scores with and without labels"):
        table.read_run(folder, with_lidar=False)
