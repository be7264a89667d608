"""What trackers have of a run, read back with their own libraries."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mophpc
from mophpc.files import read_lines
from mophpc.report.results import Results
from mophpc.report.trackers.protocol import WELL

Values = dict[tuple[str, int, str], float]
"""By config, epoch and metric."""


def need(*libraries: str) -> None:
    """Skip a test where a library is missing; a run that asks for its tracker would be refused."""
    for library in libraries:
        pytest.importorskip(library, reason=f"{library} is not installed")


def journal(folder: Path) -> Values:
    return {
        (line["config"], line["epoch"], name): math.nan if value is None else value
        for line in read_lines(folder / "metrics.jsonl")
        for name, value in line.items()
        if name not in ("config_id", "config", "epoch", "rank")
    }


def results(folder: Path) -> Results:
    return mophpc.load_run(folder).results


def check_tensorboard(folder: Path, board: Path, *, changed: bool = False) -> None:
    """Check scalars, and HParams as TensorBoard's own server finds them.

    Hyperparameters are not compared where they `changed` in the run.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing import event_accumulator

        found: Values = {}
        for path in sorted(board.iterdir()):
            events = event_accumulator.EventAccumulator(str(path))
            events.Reload()
            for tag in events.Tags()["scalars"]:
                if not tag.startswith("best_"):
                    found |= {(path.name, e.step, tag): e.value for e in events.Scalars(tag)}
        expected = {key: float(np.float32(value)) for key, value in journal(folder).items()}
        assert found.keys() == expected.keys()
        np.testing.assert_array_equal(list(found.values()), [expected[key] for key in found])
        _check_hparams(folder, board, changed)


def _check_hparams(folder: Path, board: Path, changed: bool) -> None:
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import (
        api_pb2,
        backend_context,
        get_experiment,
        list_session_groups,
    )

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(board))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(board))
    context = backend_context.Context(
        TBContext(data_provider=provider, logdir=str(board), multiplexer=multiplexer)
    )
    wanted = api_pb2.GetExperimentRequest()
    about = get_experiment.Handler(RequestContext(), context, "id", wanted).run()
    rows = results(folder).configs
    names = {name for row in rows for name in row.hyperparameters}
    assert {info.name for info in about.hparam_infos} == names
    assert {"accuracy", "valid_loss"} <= {info.name.tag for info in about.metric_infos}
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=1000,
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE],
        col_params=[{"metric": info.name} for info in about.metric_infos],
    )
    handler = list_session_groups.Handler(RequestContext(), context, "id", request)
    groups = {group.name: group for group in handler.run().session_groups}
    assert set(groups) == {row.config for row in rows}
    for row in rows:
        group = groups[row.config]
        told = {name: _plain(value) for name, value in group.hparams.items()}
        assert changed or told == row.hyperparameters
        done = api_pb2.STATUS_SUCCESS if row.status in WELL else api_pb2.STATUS_FAILURE
        assert [session.status for session in group.sessions] == [done]
        if row.status in WELL:
            last = {v.name.tag: v.value for v in group.metric_values}
            assert last["accuracy"] == np.float32(row.final["accuracy"])


def _plain(value: Any) -> Any:
    return getattr(value, value.WhichOneof("kind"))


def mlflow_runs(uri: str) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name("mophpc")
        found = [] if experiment is None else client.search_runs([experiment.experiment_id])
        return list(found)


def check_mlflow(folder: Path, uri: str, *, changed: bool = False) -> None:
    """Check parameters, metrics by step, and how runs belong together."""
    runs = mlflow_runs(uri)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    by_name = {run.info.run_name: run for run in runs}
    whole = by_name.pop(folder.name)
    assert whole.info.status == "FINISHED"
    assert whole.data.params["objective.metric"] == "accuracy"
    rows = results(folder).configs
    assert set(by_name) == {row.config for row in rows}
    best = results(folder).best
    assert best is not None
    assert whole.data.tags["mophpc.best"] == rows[best].config
    found: Values = {}
    for row in rows:
        run = by_name[row.config]
        assert run.data.tags["mlflow.parentRunId"] == whole.info.run_id
        if not changed:
            assert run.data.params == {k: str(v) for k, v in row.hyperparameters.items()}
        assert run.info.status == ("FINISHED" if row.status in WELL else "FAILED")
        for name in run.data.metrics:
            if name == "best_accuracy":
                assert run.data.metrics[name] == row.best
                continue
            for metric in client.get_metric_history(run.info.run_id, name):
                found[row.config, metric.step, name] = metric.value
    _same(found, journal(folder))


def check_wandb(folder: Path, project: str, *, changed: bool = False) -> None:
    """Check configs, history and summaries in the files that `wandb sync` would send."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from wandb.proto.wandb_internal_pb2 import Record
    rows = {row.config: row for row in results(folder).configs}
    found: Values = {}
    seen = set()
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        records = [Record.FromString(raw) for raw in _records(path.read_bytes())]
        run = next(r.run for r in records if r.HasField("run"))
        seen.add(run.display_name)
        row = rows[run.display_name]
        assert (run.project, run.run_group) == (project, folder.name)
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        told = {name: config[name] for name in row.hyperparameters}
        assert changed or told == row.hyperparameters
        for record in records:
            if record.HasField("history"):
                told = {
                    item.key or item.nested_key[0]: json.loads(item.value_json)
                    for item in record.history.item
                }
                found |= {
                    (row.config, told["epoch"], name): float(value)
                    for name, value in told.items()
                    if name != "epoch" and not name.startswith("_")
                }
        ends = [r.exit.exit_code for r in records if r.HasField("exit")]
        assert ends == [0 if row.status in WELL else 1]
    assert seen == set(rows)
    _same(found, journal(folder))


def _records(raw: bytes) -> list[bytes]:
    """Return the records of a file in LevelDB's log format, with wandb's header of 7 bytes."""
    records, part, place = [], b"", 7
    while place + 7 <= len(raw):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        size, kind = int.from_bytes(raw[place + 4 : place + 6], "little"), raw[place + 6]
        part += raw[place + 7 : place + 7 + size]
        if kind in (1, 4):  # whole, or the last part
            records.append(part)
            part = b""
        place += 7 + size
    return records


def _same(found: Values, expected: Values) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == value or (math.isnan(found[key]) and math.isnan(value)), key
