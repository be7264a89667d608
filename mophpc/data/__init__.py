"""Datasets on disk: prepare one from a source, look into it, read its shards."""

from mophpc.data.prepare import Group, prepare
from mophpc.data.shard import ShardReader, check_store, read_shard, read_valid
from mophpc.data.sources import open_source
from mophpc.data.store import FORMAT_VERSION, Field, Layout, Split, StoreInfo, open_store

__all__ = [
    "FORMAT_VERSION",
    "Field",
    "Group",
    "Layout",
    "ShardReader",
    "Split",
    "StoreInfo",
    "check_store",
    "open_source",
    "open_store",
    "prepare",
    "read_shard",
    "read_valid",
]
