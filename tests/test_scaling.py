"""What the benchmark of scaling makes of its points; nothing is run."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import scaling
from pictures import FORMATS
from scaling_points import (
    SLEEPING,
    STRONG,
    TRAINING,
    WEAK,
    Case,
    Measured,
    Point,
    Reference,
    fit,
    from_csv,
    measured,
    replayed_s,
    simulated_s,
    to_csv,
)

RANKS = (1, 2, 4, 8)


def visit(rank, config, start, end, kind="visit"):
    return {"kind": kind, "rank": rank, "config": config, "start": start, "end": end}


def made_up(case, *, per_row_s=0.01, visit_s=0.005):
    """Return a point of a run that only costs a little more per visit."""
    own_s = per_row_s * case.rows / case.ranks
    replayed = case.visits_per_rank * own_s
    lost = case.visits_per_rank * visit_s
    return Point(case, 0, Measured(replayed + lost, replayed, own_s, 0.0, 0.0))


def cases_of(part):
    return [scaling.make_case(part, SLEEPING, ranks, max(RANKS), scaling.FULL) for ranks in RANKS]


def test_a_run_without_its_gaps():
    records = [visit(0, 0, 1.0, 2.0), visit(1, 1, 1.0, 4.0), visit(1, 0, 4.5, 5.5)]
    records += [visit(0, 1, 4.6, 5.6), visit(0, 1, 5.7, 6.0, "eval")]
    assert replayed_s(records) == pytest.approx(4.3)
    found = measured(records)
    assert (found.makespan_s, found.replayed_s) == pytest.approx((5.0, 4.3))
    assert (found.visit_s, found.eval_s) == pytest.approx((1.5, 0.3))
    assert found.visit_sd == pytest.approx(math.sqrt(3) / 4 * math.log(3.0))
    assert Point(Case(STRONG, SLEEPING, 2, 2, 1, 8), 0, found).overhead_s == pytest.approx(0.35)


def test_strong_and_weak_cases():
    strong, weak = cases_of(STRONG), cases_of(WEAK)
    assert {(case.configs, case.rows) for case in strong} == {(16, 320)}
    assert [(case.configs, case.rows // case.ranks) for case in weak] == [
        (2, 40), (4, 40), (8, 40), (16, 40)
    ]  # fmt: skip


def test_training_up_to_the_cores_and_sleeping_from_there_on():
    found = scaling.cases(STRONG, [4, 1, 2, 2], 2, scaling.SMOKE)
    assert [(case.kind, case.ranks) for case in found] == [
        (TRAINING, 1), (TRAINING, 2), (SLEEPING, 2), (SLEEPING, 4)
    ]  # fmt: skip
    assert [case.kind for case in scaling.cases(WEAK, [1, 2], 2, scaling.SMOKE)] == [TRAINING] * 2


def test_a_simulation_from_the_fewest_ranks():
    points = [made_up(case) for case in cases_of(WEAK)]
    known = Reference.of(points)
    assert (known.per_row_s, known.overhead_s, known.ranks) == pytest.approx((0.01, 0.005, 1))
    for point in points:
        assert simulated_s(point.case, known) == pytest.approx(point.measured.makespan_s)
    assert known.work_s(points[-1].case) == pytest.approx(16 * 320 * 0.01)


def test_cores_of_one_machine_are_slower_together():
    # 2 ranks take 1.2 times as long per row, and so do 2 plain loops at once.
    alone, together = (scaling.make_case(WEAK, TRAINING, n, 2, scaling.FULL) for n in (1, 2))
    busy = replace(made_up(together, per_row_s=0.012), slowdown=1.2)
    points = [made_up(alone), busy]
    rows = scaling.summarize(points, [4])
    assert [row["error"] for row in rows[:2]] == pytest.approx([0.0, 0.0])
    assert (rows[-1]["ranks"], rows[-1]["predicted_s"]) == (
        4, pytest.approx(16 * 2 * (12_000 * 0.012 + 0.005))
    )  # fmt: skip
    assert Reference.of([busy]).per_row_s == pytest.approx(0.01)
    assert from_csv(to_csv(rows))[1].slowdown == pytest.approx(1.2)


def test_jitter_makes_no_visit_longer_in_the_mean():
    case = Case(WEAK, SLEEPING, 1, 400, 1, 10)
    span = simulated_s(case, Reference(0.01, 0.0, 0.0, jitter=0.4, ranks=1))
    assert span == pytest.approx(40.0, rel=0.03)  # 43.3 where the median is taken for the mean


def test_a_fit_tells_visits_from_a_serial_share():
    cases = cases_of(STRONG) + cases_of(WEAK)
    work = [case.configs * case.rows * 0.01 for case in cases]
    spans = [
        1.1 * work_s / case.ranks + 0.02 * case.visits_per_rank + 0.003 * work_s
        for case, work_s in zip(cases, work, strict=True)
    ]
    found = fit(cases, work, spans)
    assert found is not None
    assert (found.factor, found.visit_s, found.serial) == pytest.approx((1.1, 0.02, 0.003))
    assert "cost per visit 20.00 ms, serial share 0.300%" in str(found)


def test_a_fit_of_strong_scaling_alone():
    cases = cases_of(STRONG)
    work = [32.0] * len(cases)
    found = fit(cases, work, [32 / case.ranks + 0.8 for case in cases])
    assert found is not None
    assert (found.factor, found.serial, found.visit_s) == (
        pytest.approx(1.0), pytest.approx(0.025), None
    )  # fmt: skip
    assert "not told apart" in str(found)


def test_too_few_points_for_a_fit():
    assert fit([], [], []) is None
    assert fit(cases_of(STRONG)[:1], [1.0], [1.0]) is None


def test_the_csv_and_back(tmp_path):
    points = [made_up(case) for case in cases_of(WEAK)]
    rows = scaling.summarize(points, [16])
    again = from_csv(to_csv(rows))
    assert [point.case for point in again] == [point.case for point in points]
    assert again[0].measured.makespan_s == pytest.approx(points[0].measured.makespan_s)
    assert rows[-1]["kind"] == "simulated"
    assert (rows[-1]["ranks"], rows[-1]["configs"], rows[-1]["rows"]) == (16, 32, 640)
    with pytest.raises(ValueError, match="has the columns"):
        from_csv("a,b\n1,2\n")


def test_rounds_that_are_there_are_not_run_again(tmp_path, capsys):
    path = tmp_path / "scaling.csv"
    point = made_up(cases_of(WEAK)[0])
    scaling.Book(path).add(point)
    book = scaling.Book(path)
    assert book.has(point.case, 0)
    assert not book.has(point.case, 1)
    other = Case(WEAK, SLEEPING, 1, 99, 1, 40)
    with pytest.raises(SystemExit) as caught:
        book.has(other, 0)
    assert caught.value.code == 2
    assert "name a new file" in capsys.readouterr().err
    path.write_text("something else\n")
    with pytest.raises(SystemExit):
        scaling.Book(path)


def test_targets_and_table(capsys):
    slow = [made_up(case, visit_s=0.02) for case in cases_of(STRONG)]
    assert scaling.report(scaling.summarize(slow, []), None)
    out = capsys.readouterr().out
    assert "| strong, 8 sleeping ranks: overhead per visit | 10 ms | 20.00 ms | no |" in out
    assert "| strong, sleeping, 8 ranks: simulator / measured | 5% either way | " in out
    assert out.count("| no |") == 1
    fine = [made_up(case) for case in cases_of(STRONG) + cases_of(WEAK)]
    assert not scaling.report(scaling.summarize(fine, [16]), None)
    assert "cost per visit 5.00 ms, serial share 0.000%" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_picture(tmp_path, suffix):
    rows = scaling.summarize([made_up(case) for case in cases_of(WEAK)], [16])
    scaling.report(rows, tmp_path / f"scaling{suffix}")
    assert (tmp_path / f"scaling{suffix}").stat().st_size > 5000


@pytest.mark.parametrize(
    "words", [["--ranks", "0"], ["--plot", "a.pdf"], ["--part", "medium"], ["--rounds", "x"]]
)
def test_wrong_words(words):
    with pytest.raises(SystemExit) as caught:
        scaling.parse(words)
    assert caught.value.code == 2
