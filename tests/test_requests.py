"""What people ask of a run: files, their order, and answers."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mophpc import requests
from mophpc.errors import RunFolderError
from mophpc.requests import Add, Clone, Request, RequestBox, Stop, find_config, send

NAMES = ["c000-lr=0.1", "c001-lr=0.2", "c002-lr=0.3"]

values = st.dictionaries(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True),
    st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    max_size=4,
)
configs = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
epochs = st.none() | st.integers(1, 1000)
wishes = (
    st.builds(Stop, config=configs)
    | st.builds(Clone, config=configs, set=values, epochs=epochs, fresh=st.booleans())
    | st.builds(Add, set=values.filter(bool), epochs=epochs)
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "requests"


def box_of(folder: Path) -> RequestBox:
    return RequestBox(folder, every_s=0.0)


def put(folder: Path, raw: bytes, name: str = "20261124T145501.123456Z-ab12cd") -> str:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_bytes(raw)
    return name


def answer_in(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.answer.json").read_text())


@given(st.lists(wishes, max_size=5))
def test_what_is_sent_is_taken_in_order_and_as_it_was(tmp_path_factory, asked):
    folder = tmp_path_factory.mktemp("box") / "requests"
    sent = [send(folder, wish) for wish in asked]
    found = box_of(folder).poll()
    assert found == sent
    for got, wish in zip(found, asked, strict=True):
        assert got.wish == wish
        if not isinstance(wish, Stop):
            same = [type(value) for value in wish.set.values()]
            assert [type(value) for value in got.wish.set.values()] == same


def test_a_request_says_what_the_documentation_says(folder):
    send(folder, Clone(config="3", set={"lr": 3e-4}, epochs=8))
    (path,) = folder.iterdir()
    assert json.loads(path.read_text()) == {
        "format": 1,
        "kind": "clone",
        "config": "3",
        "set": {"lr": 3e-4},
        "epochs": 8,
        "fresh": False,
    }


def test_each_is_returned_once_and_after_a_restart_only_without_an_answer(folder):
    box = box_of(folder)
    assert box.poll() == []  # the folder is not there yet
    first, second = send(folder, Stop(config="0")), send(folder, Stop(config="1"))
    assert box.poll() == [first, second]
    assert box.poll() == []
    assert requests.read_answer(folder, first) is None
    box.answer(first, True, "c000 stops")
    assert requests.read_answer(folder, first) == requests.Answer(accepted=True, text="c000 stops")
    assert requests.pending(folder) == [second]
    assert box_of(folder).poll() == [second]


def test_the_folder_is_looked_at_once_in_a_while(folder, monkeypatch):
    now_s = [100.0]
    monkeypatch.setattr(requests.time, "monotonic", lambda: now_s[0])
    box, looks = RequestBox(folder), []
    real = os.listdir
    monkeypatch.setattr(requests.os, "listdir", lambda path: (looks.append(path), real(path))[1])
    sent = send(folder, Stop(config="0"))
    for _ in range(10):
        box.poll()
        now_s[0] += 0.09
    assert len(looks) == 1
    now_s[0] = 101.0
    assert box.poll() == []
    assert len(looks) == 2
    assert requests.pending(folder) == [sent]


def test_writers_at_the_same_time_do_not_meet(folder):
    box, found = box_of(folder), []

    def write(who: int) -> None:
        for _ in range(20):
            send(folder, Stop(config=str(who)))

    writers = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found += box.poll()
    found += box.poll() + box.poll()
    assert sorted(request.wish.config for request in found) == sorted("0123" * 20)
    assert not list(folder.glob("*.answer.json"))  # a half file would have been refused


def test_many_are_taken_a_part_at_a_time(folder):
    sent = [send(folder, Stop(config=str(i))) for i in range(requests.MOST_AT_ONCE + 1)]
    box = box_of(folder)
    assert box.poll() == sent[:-1]
    assert box.poll() == sent[-1:]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not JSON"),
        (b'{"format": 1, "kind": "stop", "conf', "not JSON"),
        (b"[]", "no JSON object"),
        (b"[" * 60_000, "too deep"),
        (b"\xff\xfe\xff", "no UTF-8"),
        (b'{"format": 1, "kind": "stop", "config": "\\ud800"}', "no UTF-8"),
        (b" " * 70_000, "more than 65536 bytes"),
        (b'{"kind": "stop", "config": "0"}', "its format is None; allowed: 1"),
        (b'{"format": 2, "kind": "stop", "config": "0"}', "its format is 2; allowed: 1"),
        (b'{"format": true, "kind": "stop", "config": "0"}', "its format is True; allowed: 1"),
        (b'{"format": 1, "kind": "end"}', "its kind is 'end'; allowed: stop, clone, add"),
        (b'{"format": 1, "kind": ["stop"]}', "its kind is ['stop']; allowed"),
        (b'{"format": 1, "kind": "stop"}', "field 'config' is missing"),
        (b'{"format": 1, "kind": "stop", "config": 0}', "field 'config' is 0; allowed: string"),
        (b'{"format": 1, "kind": "stop", "config": "0", "x": 1}', "unknown field 'x'"),
        (b'{"format": 1, "kind": "stop", "config": "0", "config": "1"}', "a field twice"),
        (b'{"format": 1, "kind": "add", "set": {}}', "field 'set' is {}"),
        (b'{"format": 1, "kind": "add", "set": {"a": [1]}}', "field 'set.a' is [1]; allowed: a"),
        (b'{"format": 1, "kind": "add", "set": {"a b": 1}}', "a name of letters"),
        (b'{"format": 1, "kind": "add", "set": {"a": NaN}}', "holds NaN"),
        (b'{"format": 1, "kind": "add", "set": {"a": 1e999}}', "field 'set.a' is inf"),
        (b'{"format": 1, "kind": "add", "set": {"a": 1}, "epochs": 0}', "allowed: at least 1"),
    ],
)
def test_a_damaged_file_is_refused_with_the_reason(folder, raw, reason):
    name = put(folder, raw)
    good = send(folder, Stop(config="0"))
    box = box_of(folder)
    assert box.poll() == [good]
    answer = answer_in(folder, name)
    assert not answer["accepted"]
    assert answer["text"].startswith("this is no request: ")
    assert reason in answer["text"]
    assert box.poll() == box_of(folder).poll()[1:] == []


@given(st.binary(max_size=200))
def test_no_bytes_end_a_run(tmp_path_factory, raw):
    folder = tmp_path_factory.mktemp("box") / "requests"
    name = put(folder, raw)
    if not box_of(folder).poll():
        assert not answer_in(folder, name)["accepted"]


def test_what_is_no_plain_file_is_refused_at_once(folder, tmp_path):
    folder.mkdir()
    (tmp_path / "secret").write_text("{}")
    begin = "20261124T145501.12345"
    (folder / f"{begin}1Z-ab12cd.json").symlink_to(tmp_path / "secret")
    (folder / f"{begin}2Z-ab12cd.json").mkdir()
    os.mkfifo(folder / f"{begin}3Z-ab12cd.json")  # to open it would wait for a writer
    assert box_of(folder).poll() == []
    answers = [json.loads(path.read_text()) for path in sorted(folder.glob("*.answer.json"))]
    assert [answer["accepted"] for answer in answers] == [False] * 3
    assert [answer["text"].partition(": ")[2] for answer in answers] == [
        "it is a link",
        "Is a directory",
        "it is no plain file",
    ]


def test_other_names_are_left_alone(folder):
    for name in ("readme", "20261124T145501.123456Z-ab12cd.json", ".20261124", "x\ny"):
        put(folder, b"{}", name)
    assert box_of(folder).poll() == []
    assert requests.pending(folder) == []
    assert not list(folder.glob("*.answer.json"))


def test_a_folder_that_is_a_link_is_not_used(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFolderError, match="is a link"):
        send(folder, Stop(config="0"))
    put(folder, b"{}")
    assert box_of(folder).poll() == []


def test_an_answer_that_cannot_be_written_is_told_once_and_ends_nothing(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    told: list[str] = []
    sent = [send(folder, Stop(config=str(i))) for i in range(2)]
    monkeypatch.setattr(requests, "write_json", full)
    box = RequestBox(folder, told.append, every_s=0.0)
    for request in box.poll():
        box.answer(request, True, "yes")
    assert told == [f"requests cannot be answered in '{folder}': No space left on device"]
    assert box.poll() == []
    with pytest.raises(RunFolderError, match="cannot be written: No space left"):
        send(folder, Stop(config="0"))
    assert requests.pending(folder) == sent


def test_a_folder_that_is_away_for_a_while_is_looked_at_again(folder, monkeypatch):
    sent = send(folder, Stop(config="0"))
    box = box_of(folder)

    def away(_):
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(requests.os, "listdir", away)
        assert box.poll() == []
    assert box.poll() == [sent]


def test_a_box_that_closes_refuses_what_is_left(folder):
    asked = send(folder, Stop(config="0"))
    RequestBox(folder).close()
    answer = requests.read_answer(folder, asked)
    assert answer == requests.Answer(accepted=False, text="the run ended before this was taken up")


def test_a_request_that_is_taken_back_is_not_answered(folder):
    asked = send(folder, Stop(config="0"))
    requests.withdraw(folder, asked)
    requests.withdraw(folder, asked)
    assert box_of(folder).poll() == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("raw", [b"{", b"{}", b"x" * 70_000, b'{"accepted": 1, "text": ""}'])
def test_a_damaged_answer_is_named(folder, raw):
    asked = send(folder, Stop(config="0"))
    (folder / f"{asked.name}.answer.json").write_bytes(raw)
    with pytest.raises(RunFolderError, match=r"\.answer\.json' is no answer: "):
        requests.read_answer(folder, asked)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Stop(config="c3"), "stop c3"),
        (Add(set={"lr": 3e-4, "on": True}), "add --set lr=0.0003 --set on=true"),
        (
            Clone(config="3", set={"n": 4}, epochs=8, fresh=True),
            "clone 3 --set n=4 --epochs 8 --fresh",
        ),
    ],
)
def test_a_request_reads_like_its_command(wish, words):
    assert str(Request("x", wish)) == words


@pytest.mark.parametrize("given", ["1", "c001", "c001-lr=0.2"])
def test_a_config_is_found_by_id_name_or_beginning(given):
    assert find_config(given, NAMES, "runs/first") == 1


@pytest.mark.parametrize("given", ["3", "-1", "c9", "c00", "", "c001-", "\uff11"])
def test_an_unknown_config_is_named_with_what_is_allowed(given):
    with pytest.raises(RunFolderError) as found:
        find_config(given, NAMES, "runs/first")
    assert str(found.value) == (
        f"the run 'runs/first' has no config '{given}'; allowed: 0 to 2, or a name"
    )
