"""A folder of whole states of one config: which there are, whether they are whole, which may go.

A state is two files. `step-000012.safetensors` has its tensors; `step-000012.json`, its manifest,
has everything else, and digests of both. Tensors are written first: where there is a manifest,
there is a whole state. One that was taken after 34 batches of the visit that follows 12 visits is
called `step-000012-000034`.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from mophpc.errors import RunFolderError, StateError
from mophpc.files import write_whole

FORMAT = 1
"""Of manifests; one with a higher number is not read."""
MOST_MANIFEST_BYTES = 1 << 28
SCRATCH_AGE_S = 600.0
"""A scratch file that nobody has written to for so long is left over."""

_CHUNK_BYTES = 1 << 22
_STEM = r"step-(\d{6,12})(?:-(\d{6,12}))?"
_MANIFEST = re.compile(_STEM + r"\.json")
_TENSORS = re.compile(_STEM + r"\.safetensors")
_SCRATCH = re.compile(r"\." + _STEM + r"\.(?:json|safetensors)\.\d+")
_KINDS: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "config": str,
    "config_id": int,
    "step": int,
    "tensors_file": dict,
    "slots": list,
    "tensors": list,
    "rest": dict,
    "late": (list, type(None)),
    "cursor": (dict, type(None)),
    "digest": str,
}
"""What a manifest has besides `facts`, which may be anything."""

State = tuple[int, Path]
"""Visits made, and the manifest."""


def stem_of(step: int, batches: int = 0) -> str:
    """Return the name of a state's files without its ending.

    Args:
        step: visits made.
        batches: trained of the next one.
    """
    return f"step-{step:06d}" + (f"-{batches:06d}" if batches else "")


def list_states(folder: Path) -> list[State]:
    """Return (visits made, manifest) of the states in a folder, from the oldest to the newest.

    They are whole unless they were damaged later, which `check_state` finds.
    """
    found = sorted(_matching(folder, _MANIFEST, _names(folder)))
    return [(step, path) for (step, _), path in found]


def prune(folder: Path, keep: int = 2, *, scratch_age_s: float = SCRATCH_AGE_S) -> None:
    """Remove all but the newest states, and what is left of states that never became whole.

    Other ranks may write and prune the same folder.

    Args:
        folder: of one config.
        keep: states that stay.
        scratch_age_s: scratch files stay unless they are older than the newest state by so much.
    """
    names = _names(folder)  # once: what is written from now on stays
    manifests, tensors, scratch = (
        sorted(_matching(folder, pattern, names)) for pattern in (_MANIFEST, _TENSORS, _SCRATCH)
    )
    complete = [(key, path) for key, path in manifests if _has_tensors(path)]
    if not complete:
        return
    (oldest, _), (newest, last) = complete[-max(1, keep) :][0], complete[-1]
    # Manifests first: what has lost its tensors must not look whole.
    for key, path in manifests:
        if key < oldest or (key < newest and not _has_tensors(path)):
            _remove(path)
    for key, path in tensors:
        if key < oldest:  # the manifest of a newer one may be about to be written
            _remove(path)
    for _, path in scratch:
        with suppress(OSError):  # as the file server's clock says, whose clock may be another
            if path.stat().st_mtime <= last.stat().st_mtime - scratch_age_s:
                _remove(path)


def batches_in(manifest: Path) -> int:
    """Return how many batches of its next visit a state has trained, by its name."""
    found = _MANIFEST.fullmatch(manifest.name)
    return int(found[2] or 0) if found else 0


def remove_after(folder: Path, step: int, batches: int) -> None:
    """Remove the states that are newer than one with so many visits and batches."""
    names = _names(folder)
    for pattern in (_MANIFEST, _TENSORS):
        for key, path in _matching(folder, pattern, names):
            if key > (step, batches):
                _remove(path)


def copy_state(manifest: Path, folder: Path, config: str, config_id: int, facts: Any) -> None:
    """Make a state one of another config.

    Args:
        manifest: of the state, which is sound.
        folder: of the other config.
        config: its name.
        config_id: its number.
        facts: what is to be known of the copy.

    Raises:
        StateError: the manifest is damaged.
        RunFolderError: a newer version wrote it.
        OSError: the disk is full, or the folder cannot be written.
    """
    body = read_manifest(manifest)
    tensors = tensors_path(manifest, body)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{tensors.name}.{os.getpid()}"
    scratch.unlink(missing_ok=True)
    try:
        os.link(tensors, scratch)  # files of states are replaced and never changed
    except OSError:
        shutil.copyfile(tensors, scratch)
    scratch.replace(folder / tensors.name)
    body |= {"config": config, "config_id": config_id, "facts": facts}
    write_manifest(folder / manifest.name, {k: v for k, v in body.items() if k != "digest"})


def write_manifest(path: Path, body: dict[str, Any]) -> int:
    """Write a manifest with its digest, whole; return its bytes.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    text = json.dumps(_to_plain(body), separators=(",", ":"), allow_nan=False)
    plain = json.loads(text)  # as whoever reads it will see it
    raw = json.dumps(plain | {"digest": _digest_of(plain)}, separators=(",", ":")) + "\n"
    write_whole(path, raw)
    sync_folder(path.parent)
    return len(raw)


def read_manifest(path: Path) -> dict[str, Any]:
    """Return a manifest whose digest is right and whose parts are of the right kinds.

    Raises:
        StateError: it is damaged; the message names the file.
        RunFolderError: a newer version wrote it.
    """
    try:
        if path.stat().st_size > MOST_MANIFEST_BYTES:
            raise StateError(f"state '{path}' is damaged: it is too large for a manifest")
        body = json.loads(path.read_bytes())
    except OSError as error:
        raise StateError(f"state '{path}' cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise StateError(f"state '{path}' is damaged: it is not JSON ({error})") from error
    if not isinstance(body, dict) or not isinstance(body.get("digest"), str):
        raise StateError(f"state '{path}' is damaged: it has no digest")
    try:
        found = _digest_of({key: value for key, value in body.items() if key != "digest"})
        if found != body["digest"]:
            raise StateError(
                f"state '{path}' is damaged: its digest is {found}, it says {body['digest']}"
            )
        body = _from_plain(body)
    except RecursionError as error:
        raise StateError(f"state '{path}' is damaged: it is nested too deeply") from error
    _check_kinds(path, body)
    return body  # type: ignore[no-any-return]  # it is a dict, as JSON has them


def check_state(manifest: Path) -> None:
    """Return if both files of a state have the digests that they should have.

    Raises:
        StateError: they are damaged, or cannot be read; the message names the file.
        RunFolderError: a newer version wrote it.
    """
    check_tensors(manifest, read_manifest(manifest))


def check_tensors(manifest: Path, body: dict[str, Any]) -> Path:
    """Return the file with a state's tensors, if it has the size and digest that it should have.

    Raises:
        StateError: it has not; the message names the file.
    """
    path = tensors_path(manifest, body)
    about = body["tensors_file"]
    try:
        with path.open("rb") as file:
            nbytes = os.fstat(file.fileno()).st_size
            if nbytes != about["nbytes"]:
                raise StateError(
                    f"state '{path}' is damaged: it has {nbytes} bytes, not {about['nbytes']}"
                )
            found = digest_of_file(file)
    except OSError as error:
        raise StateError(f"state '{path}' cannot be read: {error.strerror or error}") from error
    if found != about["digest"]:
        raise StateError(
            f"state '{path}' is damaged: its digest is {found}, it should be {about['digest']}"
        )
    return path


def tensors_path(manifest: Path, body: dict[str, Any]) -> Path:
    """Return where the tensors of a state are: beside its manifest, under the same name.

    Raises:
        StateError: the manifest names another place.
    """
    about = body["tensors_file"]
    kinds = {"name": str, "nbytes": int, "digest": str}
    if any(type(about.get(key)) is not kind for key, kind in kinds.items()):
        raise StateError(f"state '{manifest}' does not say which file has its tensors")
    expected = manifest.with_suffix(".safetensors").name
    if about["name"] != expected:
        raise StateError(
            f"state '{manifest}' names '{about['name']}' as the file with its tensors; "
            f"allowed: '{expected}' beside it"
        )
    return manifest.with_name(expected)


def new_digest() -> Any:
    """Return a digest that can be updated: XXH3 of 128 bits."""
    return xxhash.xxh3_128()


def said(digest: Any) -> str:
    """Return a digest as it is written down."""
    return f"xxh3-128:{digest.hexdigest()}"


def digest_of_file(file: BinaryIO, digest: Any = None) -> str:
    """Return the digest of what follows in a file; with what another has taken already."""
    digest = new_digest() if digest is None else digest
    chunk = memoryview(bytearray(_CHUNK_BYTES))
    while count := file.readinto(chunk):  # type: ignore[attr-defined]  # BinaryIO lacks it
        digest.update(chunk[:count])
    return said(digest)


def sync_folder(folder: Path) -> None:
    """Put on disk which files a folder has."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system knows how
            os.fsync(fd)
    finally:
        os.close(fd)


def _digest_of(plain: dict[str, Any]) -> str:
    digest = new_digest()
    digest.update(json.dumps(plain, separators=(",", ":"), sort_keys=True).encode())
    return said(digest)


def _check_kinds(path: Path, body: dict[str, Any]) -> None:
    number = body.get("format")
    if type(number) is int and number > FORMAT:
        raise RunFolderError(
            f"state '{path}' was written by a newer version of mophpc (format {number}, this one "
            f"reads up to {FORMAT}); resume with that version"
        )
    for key, kind in _KINDS.items():
        if key not in body or not isinstance(body[key], kind) or isinstance(body[key], bool):
            raise StateError(f"state '{path}' cannot be used: '{key}' is not as it should be")
    if body["step"] < 0:
        raise StateError(f"state '{path}' cannot be used: 'step' is {body['step']}")


def _to_plain(value: Any) -> Any:
    """Return `value` with floats that JSON has no word for said as objects."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return value


def _from_plain(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"float"} and value["float"] in ("inf", "-inf", "nan"):
            return float(value["float"])
        return {key: _from_plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_plain(item) for item in value]
    return value


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _matching(
    folder: Path, pattern: re.Pattern[str], names: list[str]
) -> Iterator[tuple[tuple[int, int], Path]]:
    """Yield ((visits made, batches trained), path) of the names that match."""
    for name in names:
        found = pattern.fullmatch(name)
        if found is not None:
            yield (int(found[1]), int(found[2] or 0)), folder / name


def _has_tensors(manifest: Path) -> bool:
    return manifest.with_suffix(".safetensors").is_file()


def _remove(path: Path) -> None:
    with suppress(OSError):  # another rank was faster; or it stays, which harms nobody
        path.unlink(missing_ok=True)
