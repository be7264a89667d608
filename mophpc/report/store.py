"""A store in a few lines."""

from __future__ import annotations

from typing import Any

from mophpc.data.store import StoreInfo


def describe_store(info: StoreInfo) -> dict[str, Any]:
    """Return what people want to know of a store, as JSON values."""
    fields = [f"{f.name}: {f.dtype} {tuple(f.shape)}" for f in info.fields]
    return {
        "store": str(info.path),
        "source": info.source,
        "fields": fields,
        "rows": info.rows,
        "valid rows": info.valid_rows,
        "shards": info.num_shards,
        "rows per shard": list(info.shard_rows),
        "seed": info.seed,
        "bytes": info.nbytes,
        "format": info.format_version,
        "digest": info.digest,
    }
