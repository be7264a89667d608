"""Importance of hyperparameters, where it is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kruskal, rankdata

from mophpc.report.importance import importances, mean_ranks
from mophpc.report.run_data import Row, RunData


def run_of(tmp_path, values, results, maximise=True):
    run = RunData(tmp_path, maximise=maximise)
    for i, (own, best) in enumerate(zip(values, results, strict=True)):
        status = "diverged" if best is None else "done"
        run.rows.append(Row(i, f"c{i:03d}", status, own, best=best))
    return run


def test_ranks_are_those_of_scipy():
    values = np.array([3.0, 1.0, 3.0, 2.0, -np.inf, -np.inf, 3.0])
    np.testing.assert_array_equal(mean_ranks(values), rankdata(values))


def test_what_decides_everything_and_what_decides_nothing(tmp_path):
    rng = np.random.default_rng(1)
    values = [
        {"lr": 10.0 ** -(i % 4), "arch": ("a", "b")[i // 4 % 2], "seed": int(rng.integers(9))}
        for i in range(64)
    ]
    results = [float(-np.log10(v["lr"])) + rng.normal(0, 0.01) for v in values]
    found = {one.name: one for one in importances(run_of(tmp_path, values, results))}
    assert next(iter(found)) == "lr"
    assert found["lr"].share > 0.9
    assert found["lr"].p_value < 1e-6
    assert found["lr"].direction < -0.9
    assert found["arch"].share < 0.1
    assert found["arch"].direction is None
    assert found["seed"].share < 0.2


def test_the_direction_turns_with_the_objective(tmp_path):
    values = [{"width": i % 8} for i in range(32)]
    results = [float(v["width"]) + 0.001 * i for i, v in enumerate(values)]
    more = importances(run_of(tmp_path, values, results))[0]
    less = importances(run_of(tmp_path, values, results, maximise=False))[0]
    assert more.direction > 0.9
    assert less.direction < -0.9
    assert more.share == pytest.approx(less.share)


def test_p_is_that_of_kruskal_and_wallis(tmp_path):
    rng = np.random.default_rng(3)
    values = [{"a": i % 3} for i in range(30)]
    results = [float(x) for x in rng.normal(size=30)]
    found = importances(run_of(tmp_path, values, results))[0]
    groups = [[r for r, v in zip(results, values, strict=True) if v["a"] == g] for g in range(3)]
    assert found.p_value == pytest.approx(kruskal(*groups).pvalue, rel=1e-9)


def test_a_diverged_config_counts_as_worst(tmp_path):
    values = [{"lr": ("low", "high")[i % 2]} for i in range(12)]
    results = [None if i % 2 else 0.5 + 0.01 * i for i in range(12)]
    found = importances(run_of(tmp_path, values, results))[0]
    assert found.share > 0.6


def test_a_conditional_hyperparameter_is_judged_among_those_that_have_it(tmp_path):
    values = [{"arch": "mlp", "width": i % 4} if i % 2 else {"arch": "cnn"} for i in range(32)]
    results = [10.0 + v["width"] if "width" in v else 0.1 * i for i, v in enumerate(values)]
    found = {one.name: one for one in importances(run_of(tmp_path, values, results))}
    assert found["width"].configs == 16
    assert found["arch"].share > 0.5


@pytest.mark.parametrize(
    ("values", "results"),
    [
        ([], []),
        ([{"a": 1}] * 3, [1.0, 2.0, 3.0]),
        ([{"a": 1}] * 9, [float(i) for i in range(9)]),
        ([{"a": i % 2} for i in range(9)], [1.0] * 9),
        ([{"a": str(i)} for i in range(9)], [float(i) for i in range(9)]),
        ([{"a": i % 2} for i in range(9)], [None] * 9),
    ],
)
def test_nothing_is_said_where_nothing_can_be(tmp_path, values, results):
    assert importances(run_of(tmp_path, values, results)) == []


def test_mixed_values_are_groups(tmp_path):
    values = [{"a": (True, 1, "1", None)[i % 4]} for i in range(16)]
    found = importances(run_of(tmp_path, values, [float(i) for i in range(16)]))[0]
    assert found.groups == 4
    assert found.direction is None
