"""The costs file: what is read is what was meant, and mistakes are said in a sentence."""

from __future__ import annotations

import json
import math
import stat

import pytest

from mophpc.costs_file import ConfigCosts, CostsFile, LinkCosts, load_costs, save_costs
from mophpc.errors import CostsError, UserError

WHOLE = CostsFile(
    configs={
        "c000-lr=0.1": ConfigCosts(
            seconds_per_row=0.002, overhead_s=0.01, eval_s=0.3, state_nbytes=1 << 40
        ),
        "c001": ConfigCosts(visit_s=1.5),
        "c002": ConfigCosts(visit_s=(1.0, 0.1 + 0.2, 0.0)),
    },
    rank_factors=(1.0, 2.5),
    link=LinkCosts(latency_s=1e-4, bandwidth_bytes_per_s=1e9),
)


def write(folder, value):
    path = folder / "costs.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def one(**fields):
    return {"configs": {"a": fields}}


def test_what_is_saved_is_loaded_and_saved_again_to_the_byte(tmp_path):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    save_costs(first, WHOLE)
    assert load_costs(first) == WHOLE
    save_costs(second, load_costs(first))
    assert first.read_bytes() == second.read_bytes()
    written = json.loads(first.read_text())
    assert written["format"] == 1
    assert written["configs"]["c002"]["visit_s"] == [1.0, 0.1 + 0.2, 0.0]
    assert "seconds_per_row" not in written["configs"]["c001"]


def test_what_is_left_out_has_a_default(tmp_path):
    costs = load_costs(write(tmp_path, one(seconds_per_row=1)))
    assert costs == CostsFile(format=1, configs={"a": ConfigCosts(seconds_per_row=1.0)})
    own = costs.of("a")
    assert (own.visit_s, own.overhead_s, own.eval_s, own.state_nbytes) == (None, 0.0, 0.0, 0)
    assert type(own.seconds_per_row) is float
    assert costs.rank_factors is None
    assert costs.link is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "field 'configs' is missing"),
        ([], "holds a list; allowed: an object with 'configs'"),
        ({"configs": {}}, "field 'configs' is {}; allowed: at least 1 entry"),
        ({"configs": []}, "field 'configs' is []; allowed: an object"),
        ({"configs": {"a": 3}}, "field 'configs.a' is 3; allowed: an object"),
        ({"format": 2} | one(visit_s=1), "field 'format' is 2; allowed: 1"),
        (
            {"configs": {"a": {}}},
            "configs.a: give either seconds_per_row or visit_s; neither is given",
        ),
        (
            one(visit_s=1, seconds_per_row=1),
            "configs.a: give either seconds_per_row or visit_s; both are given",
        ),
        (
            one(vist_s=1),
            "unknown field 'configs.a.vist_s'; allowed here: seconds_per_row, visit_s, overhead_s, "
            "eval_s, state_nbytes",
        ),
        (
            {"lnk": 1} | one(visit_s=1),
            "unknown field 'lnk'; allowed here: format, configs, rank_factors, link",
        ),
        (
            {"link": {"latency": 1}} | one(visit_s=1),
            "unknown field 'link.latency'; allowed here: latency_s, bandwidth_bytes_per_s",
        ),
        (
            {"link": {"latency_s": 1}} | one(visit_s=1),
            "field 'link.bandwidth_bytes_per_s' is missing",
        ),
        (
            {"link": {"latency_s": 0, "bandwidth_bytes_per_s": 0}} | one(visit_s=1),
            "field 'link.bandwidth_bytes_per_s' is 0; allowed: at least 1",
        ),
        (one(visit_s="x"), "field 'configs.a.visit_s' is 'x'; allowed: a number"),
        (one(visit_s=True), "field 'configs.a.visit_s' is True; allowed: a number"),
        (one(visit_s=-1), "field 'configs.a.visit_s' is -1; allowed: at least 0"),
        (one(visit_s=[]), "field 'configs.a.visit_s' is []; allowed: at least 1 entry"),
        (one(visit_s=[1, "x"]), "field 'configs.a.visit_s.1' is 'x'; allowed: a number"),
        (one(visit_s=[1, -2.5]), "field 'configs.a.visit_s.1' is -2.5; allowed: at least 0"),
        (one(visit_s=math.nan), "field 'configs.a.visit_s' is nan; allowed: a finite number"),
        (one(visit_s=[math.inf]), "field 'configs.a.visit_s.0' is inf; allowed: a finite number"),
        (
            one(seconds_per_row=1e300),
            "field 'configs.a.seconds_per_row' is 1e+300; allowed: at most 1000000000",
        ),
        (
            one(visit_s=1, state_nbytes=1.5),
            "field 'configs.a.state_nbytes' is 1.5; allowed: a whole number",
        ),
        (
            {"rank_factors": []} | one(visit_s=1),
            "field 'rank_factors' is []; allowed: at least 1 entry",
        ),
        (
            {"rank_factors": [1, 0]} | one(visit_s=1),
            "field 'rank_factors.1' is 0; allowed: greater than 0",
        ),
        (
            {"rank_factors": 2} | one(visit_s=1),
            "field 'rank_factors' is 2; allowed: a list of numbers",
        ),
        (
            {"configs": {"number": {"visit_s": [-1]}}},
            "field 'configs.number.visit_s.0' is -1; allowed: at least 0",
        ),
        ('{"configs": {"a": {"visit_s": 1}, "a": 2}}', "'a' is there twice in one object"),
    ],
    ids=lambda value: None if isinstance(value, str) else json.dumps(value)[:40],
)
def test_a_mistake_is_said_in_one_sentence(tmp_path, value, message):
    path = write(tmp_path, value)
    with pytest.raises(CostsError) as caught:
        load_costs(path)
    assert str(caught.value) == f"{path}: {message}"
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b"[" * 100_000, b'{"a": 1} 2'])
def test_a_file_that_is_not_json_is_said_so(tmp_path, content):
    path = tmp_path / "costs.json"
    path.write_bytes(content)
    with pytest.raises(CostsError, match=r"costs\.json: not JSON"):
        load_costs(path)


def test_a_file_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(CostsError, match=r"none\.json' does not exist; costs are 'equal'"):
        load_costs(tmp_path / "none.json")
    with pytest.raises(CostsError, match="is no file; costs are 'equal'"):
        load_costs(tmp_path)


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    path = tmp_path / "costs.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(one(visit_s=1)).encode())
    assert load_costs(path).of("a").visit_s == 1.0


def test_configs_without_costs_are_named_and_further_ones_do_no_harm():
    WHOLE.check_names(["c001", "c002"])
    assert WHOLE.of("c001") is WHOLE.configs["c001"]
    with pytest.raises(CostsError) as caught:
        WHOLE.of("c003")
    assert str(caught.value) == (
        "there are no costs of config 'c003'; the costs file has 'c000-lr=0.1', 'c001', 'c002'"
    )
    with pytest.raises(CostsError) as caught:
        WHOLE.check_names(["c001", *(f"d{i}" for i in range(6))])
    assert "no costs of configs 'd0', 'd1', 'd2' and 3 more;" in str(caught.value)


def test_a_file_that_is_replaced_is_whole(tmp_path):
    path = write(tmp_path, "old")
    save_costs(path, WHOLE)
    assert load_costs(path) == WHOLE
    assert [file.name for file in tmp_path.iterdir()] == ["costs.json"]
    assert stat.S_ISREG(path.stat().st_mode)
