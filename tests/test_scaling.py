"""What the benchmark of scaling makes of its points; nothing is run."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from bench_testing import ends_its_rank, refused, write_launcher

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import pictures
import scaling
import scaling_tables
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


def test_training_up_to_the_cores_and_sleeping_beyond_them():
    found = scaling.cases(STRONG, [4, 1, 2, 2], 2, scaling.SMOKE)
    assert [(case.kind, case.ranks) for case in found] == [
        (TRAINING, 1), (TRAINING, 2), (SLEEPING, 4)
    ]  # fmt: skip
    assert [case.kind for case in scaling.cases(WEAK, [1, 2], 2, scaling.SMOKE)] == [TRAINING] * 2


def test_a_simulation_from_the_fewest_ranks():
    points = [made_up(case) for case in cases_of(WEAK)]
    known = Reference.of(points)
    assert (known.per_row_s, known.overhead_s, known.pace) == pytest.approx((0.01, 0.005, 1))
    for point in points:
        assert simulated_s(point.case, known) == pytest.approx(point.measured.makespan_s)
    assert known.work_s(points[-1].case) == pytest.approx(16 * 320 * 0.01)


def test_cores_of_one_machine_are_slower_together():
    # 2 ranks take 1.2 times as long per row, and so do 2 plain loops at once, beside these runs.
    alone, together = (scaling.make_case(WEAK, TRAINING, n, 2, scaling.FULL) for n in (1, 2))
    busy = replace(made_up(together, per_row_s=0.012), pace=0.0036)
    points = [replace(made_up(alone), pace=0.003), busy]
    rows = scaling_tables.summarize(points, [4])
    assert [row["error"] for row in rows[:2]] == pytest.approx([0.0, 0.0])
    assert (rows[-1]["ranks"], rows[-1]["predicted_s"]) == (
        4, pytest.approx(16 * 2 * (12_000 * 0.012 + 0.005))
    )  # fmt: skip
    assert [row["slowdown"] for row in rows[:2]] == pytest.approx([1.0, 1.2])
    assert from_csv(to_csv(rows))[1].pace == pytest.approx(0.0036)


def test_rounds_of_machines_that_are_not_as_fast(capsys):
    cases = cases_of(STRONG)[:3]
    fast = [made_up(case) for case in cases]
    slow = [
        replace(made_up(case, per_row_s=0.02, visit_s=0.01), round=1, machine="m") for case in cases
    ]
    rows = scaling_tables.summarize([*fast, *slow], [])
    real = [row for row in rows if row["kind"] == SLEEPING]
    assert [row["error"] for row in real] == pytest.approx([0.0] * 6, abs=1e-9)
    assert not scaling_tables.report(rows, None)
    told = capsys.readouterr().out
    assert told.startswith("- m\n")
    assert "| strong | sleeping | 2 | 16 | 2 |" in told
    assert (
        "| strong, sleeping, 1 ranks: simulator / measured | 5% either way, which it was told | "
        in told
    )
    # A round that has been cut off before, and lacks what it is predicted from.
    found = scaling_tables.summarize([*fast, *slow[1:]], [])
    assert [row["error"] for row in found if row.get("round") == 0] == pytest.approx([0.0] * 3)


def test_jitter_makes_no_visit_longer_in_the_mean():
    case = Case(WEAK, SLEEPING, 1, 400, 1, 10)
    span = simulated_s(case, Reference(0.01, 0.0, 0.0, jitter=0.4, pace=1.0))
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
    rows = scaling_tables.summarize(points, [16])
    again = from_csv(to_csv(rows))
    assert [point.case for point in again] == [point.case for point in points]
    assert to_csv(scaling_tables.summarize(again, [16])) == to_csv(rows)
    assert again[0].measured.makespan_s == pytest.approx(points[0].measured.makespan_s)
    assert rows[-1]["kind"] == "simulated"
    assert (rows[-1]["ranks"], rows[-1]["configs"], rows[-1]["rows"]) == (16, 32, 640)
    with pytest.raises(ValueError, match="line 1, column 1: 'a' is given; allowed: 'part'"):
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
    assert scaling_tables.report(scaling_tables.summarize(slow, []), None)
    out = capsys.readouterr().out
    assert "| strong, 8 sleeping ranks: overhead per visit | 10 ms | 20.00 ms | no |" in out
    assert "| strong, sleeping, 8 ranks: simulator / measured | 5% either way | " in out
    assert out.count("| no |") == 1
    fine = [made_up(case) for case in cases_of(STRONG) + cases_of(WEAK)]
    assert not scaling_tables.report(scaling_tables.summarize(fine, [16]), None)
    assert "cost per visit 5.00 ms, serial share 0.000%" in capsys.readouterr().out


def test_what_makes_visits_longer_is_told_beside_the_overhead(capsys):
    points = [made_up(case) for case in cases_of(STRONG)]
    told, longer = points[-1].measured, points[-1].measured.visit_s + 0.03
    points[-1] = replace(points[-1], measured=replace(told, visit_s=longer))
    scaling_tables.report(scaling_tables.summarize(points, []), None)
    row = "| the same, and by how much visits are longer than on 1 ranks | - | 35.00 ms | - |"
    assert row in capsys.readouterr().out


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_picture(tmp_path, suffix):
    rows = scaling_tables.summarize([made_up(case) for case in cases_of(WEAK)], [16])
    scaling_tables.report(rows, tmp_path / f"scaling{suffix}")
    assert (tmp_path / f"scaling{suffix}").stat().st_size > 5000


@pytest.fixture
def nothing_runs(monkeypatch):
    def run(*arguments):
        pytest.fail("a run was started")

    monkeypatch.setattr(scaling.Bench, "run", run)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("weak,sleeping,2", "weak,sleeping,0", "line 3, column ranks: '0' is given; allowed: who"),
        ("weak,sleeping,2", "wake,sleeping,2", "line 3, column part: 'wake' is given; allowed: st"),
        ("weak,sleeping,2", "weak,asleep,2", "line 3, column kind: 'asleep' is given; allowed: tr"),
        ("weak,sleeping,2", "weak,simulated,2", "line 3, column makespan_s: '1.62' is given;"),
        (",1.62,", ",,", "line 3, column makespan_s: '' is given; allowed: numbers above 0"),
        (",1.62,", ",nan,", "line 3, column makespan_s: 'nan' is given; allowed: numbers above 0"),
        (",1.62,", ",", "line 3 has 18 columns; allowed: 19"),
        ("part,kind,", "part,", "line 1, column 2: 'ranks' is given; allowed: 'kind'"),
        (",error,machine", ",error", "line 1, column 19: '' is given; allowed: 'machine'"),
        (",machine", ",machine,x", "line 1 has 20 columns; allowed: 19"),
    ],
)
@pytest.mark.usefixtures("nothing_runs")
def test_a_damaged_csv_is_left_alone(tmp_path, capsys, old, new, told):
    path = tmp_path / "scaling.csv"
    text = to_csv(scaling_tables.summarize([made_up(case) for case in cases_of(WEAK)], [16]))
    assert old in text
    path.write_text(damaged := text.replace(old, new, 1))
    err = refused(scaling.main, capsys, ["--csv", str(path)])
    assert told in err
    assert "name another file" in err
    assert path.read_text() == damaged


@pytest.mark.usefixtures("nothing_runs")
def test_points_of_another_sleep_are_refused(tmp_path, capsys):
    case = cases_of(WEAK)[1]
    asked_s = scaling.FULL.visit_s(case)
    assert asked_s == scaling.FULL.sleep_s
    book = scaling.Book(tmp_path / "scaling.csv")
    book.add(made_up(case, per_row_s=asked_s * 1.03 * case.ranks / case.rows))
    assert book.has(case, 0, asked_s)
    before = book.path.read_text()
    for other_s in ("0.1", "0.5"):
        words = ["--csv", str(book.path), "--sleep", other_s, "--ranks", "1", "2"]
        err = refused(scaling.main, capsys, [*words, "--cores", "1", "--part", WEAK])
        assert f"visits slept 0.258 s, and asked for are {other_s} s; name a new file" in err
    assert book.path.read_text() == before
    assert scaling.FULL.visit_s(replace(case, kind=TRAINING)) is None


@pytest.mark.usefixtures("nothing_runs")
def test_files_are_looked_at_before_anything_runs(tmp_path, capsys, monkeypatch):
    (tmp_path / "file.csv").write_text("")
    for words, told in (
        (["--csv", str(tmp_path)], "it is a folder"),
        (["--csv", str(tmp_path / "no" / "a.csv")], "there is no folder"),
        (["--csv", str(tmp_path / "file.csv")], "line 1, column 1: '' is given"),
        (["--plot", str(tmp_path / "no" / "a.svg")], "there is no folder"),
        (["--plot", "a.pdf"], "a.pdf"),
        (["--plot", "a.svg", "--csv", "a.svg"], "--csv is the same file"),
        (["--keep", str(tmp_path / "file.csv")], "it is no folder"),
        (["--keep", str(tmp_path / "file.csv" / "under")], "it is no folder"),
    ):
        assert told in refused(scaling.main, capsys, words)
    (tmp_path / "file.csv").write_bytes(b"\xff\x00")
    assert "is no text" in refused(scaling.main, capsys, ["--csv", str(tmp_path / "file.csv")])
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    assert "plots" in refused(scaling.main, capsys, ["--plot", str(tmp_path / "a.svg")])


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--ranks", "0", "'0'"),
        ("--rounds", "x", "'x'"),
        ("--rounds", "-1", "'-1'"),
        ("--rounds", "0", "'0'"),
        ("--part", "medium", "'medium'"),
        ("--sleep", "-1", "'-1' is given; allowed: seconds above 0"),
        ("--sleep", "0", "'0' is given; allowed: seconds above 0"),
        ("--sleep", "nan", "'nan' is given; allowed: seconds above 0"),
        ("--sleep", "inf", "'inf' is given; allowed: seconds above 0"),
        ("--sleep", "long", "'long' is given; allowed: seconds above 0"),
        ("--launcher", "mpirun {foo}", "'mpirun {foo}' is given; allowed: a command as in"),
        ("--launcher", "mpirun {", "with {ranks} as the only word in braces"),
        ("--launcher", "mpirun {ranks[0]}", "with {ranks} as the only word in braces"),
        ("--launcher", "mpirun 'x", "allowed: a command as in"),
        ("--launcher", "", "allowed: a command as in"),
        ("--launcher", "no-such-launcher -n {ranks}", "there is no such command"),
        ("--launcher", "/no/such/launcher -n {ranks}", "there is no such command"),
    ],
)
def test_wrong_words(capsys, option, value, told):
    err = refused(scaling.main, capsys, [option, value])
    assert option in err
    assert told in err


def test_a_launcher_that_is_there(tmp_path):
    command = f"{sys.executable} -n {{ranks}}"
    assert scaling.parse(["--launcher", command]).launcher == command


def test_no_rank_stays_behind_when_it_is_ended(tmp_path):
    write_launcher(tmp_path / "launch")
    command = [sys.executable, scaling.__file__, "--smoke", "--part", STRONG, "--ranks", "1"]
    command += ["--launcher", str(tmp_path / "launch")]
    assert ends_its_rank(command, os.environ, tmp_path / "rank")
