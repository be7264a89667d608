"""Find a user's function: `file.py:function` or `package.module:function`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mophpc.errors import ExperimentError


def load_callable(reference: str, base: Path | None = None) -> Callable[..., Any]:
    """Import the function that `reference` names.

    Args:
        reference: `file.py:function` (relative paths are taken from `base`) or
            `package.module:function`.
        base: the folder of the file that holds the reference; the current one by default.

    Raises:
        ExperimentError: the file, module or function is missing, or importing it failed.
    """
    where, _, name = reference.rpartition(":")
    if not where or not name.isidentifier():
        raise ExperimentError(
            f"'{reference}' does not name a function; write file.py:function or "
            f"package.module:function"
        )
    try:
        module = _load_file(where, base) if where.endswith(".py") else _load_module(where, base)
    except ExperimentError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's module does when imported
        raise ExperimentError(
            f"importing '{where}' failed: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, name, None)
    if function is None:
        raise ExperimentError(
            f"'{where}' has no function '{name}'; it has {', '.join(_names(module)) or 'none'}"
        )
    if not callable(function):
        raise ExperimentError(f"'{reference}' is a {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]  # checked to be callable


def _names(module: Any) -> list[str]:
    """Return what a module offers: its functions, and the classes that it defines itself."""
    return sorted(
        key
        for key, item in vars(module).items()
        if not key.startswith("_")
        and (
            inspect.isfunction(item)
            or (inspect.isclass(item) and item.__module__ == module.__name__)
        )
    )


def resolve(reference: str, base: Path) -> str:
    """Return `reference` with the path of a file made absolute."""
    where, _, name = reference.rpartition(":")
    return f"{(base / where).resolve()}:{name}" if where.endswith(".py") else reference


def reference_of(function: Callable[..., Any], what: str = "build") -> str:
    """Return the reference under which another process can import `function`, which is `what`.

    Raises:
        ExperimentError: `function` is a lambda or local to another function.
    """
    name = getattr(function, "__qualname__", "<unnamed>")
    if not name.isidentifier():
        raise ExperimentError(
            f"{what} is '{name}'; it must be a function at the top level of a file, so that every "
            f"rank and 'mophpc verify' can import it"
        )
    source = inspect.getsourcefile(function)
    if source is None:
        raise ExperimentError(f"{what} '{name}' has no source file that other ranks could import")
    return f"{Path(source).resolve()}:{name}"


def source_sha256(function: Callable[..., Any]) -> str | None:
    """Return the SHA-256 of the file that defines `function`, or None where there is none."""
    try:
        source = inspect.getsourcefile(function)
    except TypeError:
        return None
    return hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else None


def _load_file(where: str, base: Path | None) -> Any:
    path = ((base or Path.cwd()) / where).resolve()
    if not path.is_file():
        raise ExperimentError(f"there is no file '{path}'")
    # Named by its path: two experiments in one process may both have a `model.py`.
    key = f"_mophpc_user_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    if spec is None or spec.loader is None:
        raise ExperimentError(f"'{path}' cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # its own imports of files beside it
    sys.modules[key] = module  # before execution: dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[key]
        raise
    return module


def _load_module(where: str, base: Path | None) -> Any:
    folder = str((base or Path.cwd()).resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(where)
