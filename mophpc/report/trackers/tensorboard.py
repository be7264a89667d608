"""TensorBoard: a folder of events per config, with its scalars and its session for HParams.

Files are opened for each record: a run may have more configs than a process may have files.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2
from tensorboard.summary.writer.record_writer import RecordWriter

from mophpc.report.trackers.protocol import WELL, About

FOLDER = "tensorboard"


class TensorBoard:
    """See `Tracker`."""

    def __init__(self, about: About) -> None:
        own = about.target is True
        self._folder = Path(about.folder, FOLDER) if own else Path(about.target, about.name)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._metric = about.metric
        # As TensorBoard's own: it reads what has `tfevents` in its name, in the order of names.
        self._file = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._paths: dict[int, Path] = {}

    def config(self, config_id: int, name: str, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        path = self._folder / name / self._file
        path.parent.mkdir(exist_ok=True)
        self._paths[config_id] = path
        _append(path, Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._write(config_id, summary_v2.hparams_pb(dict(values), trial_id=name))

    def epoch(self, config_id: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker`."""
        found = Summary()
        for name, value in metrics.items():
            found.value.append(_scalar(name, value))
        self._write(config_id, found, epoch)

    def final(self, config_id: int, status: str, best: float | None) -> None:
        """See `Tracker`."""
        if best is not None:
            self._write(config_id, Summary(value=[_scalar(f"best_{self._metric}", best)]))
        success = api_pb2.STATUS_SUCCESS if status in WELL else api_pb2.STATUS_FAILURE
        ended = plugin_data_pb2.SessionEndInfo(status=success, end_time_secs=time.time())
        data = plugin_data_pb2.HParamsPluginData(session_end_info=ended)
        value = Summary.Value(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(data),
            tensor=metadata.NULL_TENSOR,
        )
        self._write(config_id, Summary(value=[value]))

    def end(self, status: str, best: str | None) -> None:
        """See `Tracker`."""

    def _write(self, config_id: int, summary: Summary, step: int = 0) -> None:
        _append(self._paths[config_id], Event(wall_time=time.time(), step=step, summary=summary))


def _scalar(tag: str, value: float) -> Summary.Value:
    plugin = SummaryMetadata.PluginData(plugin_name="scalars")
    about = SummaryMetadata(plugin_data=plugin)
    return Summary.Value(tag=tag, simple_value=value, metadata=about)


def _append(path: Path, event: Event) -> None:
    with path.open("ab") as file:
        RecordWriter(file).write(event.SerializeToString())
