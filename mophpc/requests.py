"""What people ask of a run while it goes on: small files in its folder, and their answers.

`RUN/requests/20261124T145501.123456Z-ab12cd.json`:

    {"format": 1, "kind": "stop", "config": "c003"}
    {"format": 1, "kind": "clone", "config": "3", "set": {"lr": 3e-4}, "epochs": 8, "fresh": false}
    {"format": 1, "kind": "add", "set": {"lr": 3e-4, "width": 64}, "epochs": null}

Each is written whole. Names are times, so their order is the order of the requests, and a random
end, so that no two writers meet. Rank 0 looks for them between visits and answers each in a file
beside it, `….answer.json`. Whoever can write into the folder can ask; no port is open.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, Field, ValidationError

from mophpc.dimensions import Name, Value
from mophpc.errors import RunFolderError
from mophpc.files import write_json
from mophpc.settings import SETTINGS, explain

LARGEST = 65_536
"""Bytes of a request or an answer; more is not read."""
LOOK_EVERY_S = 1.0
"""Rank 0 looks into the folder at most so often."""
MOST_AT_ONCE = 64
"""Requests that one look takes; the next look takes the next ones."""

_NAME = re.compile(r"^\d{8}T\d{6}\.\d{6}Z-[0-9a-f]{6}$")
_ANSWER = ".answer.json"

Whole = Annotated[int, Field(ge=1, le=1_000_000)]


class _Wish(BaseModel):
    model_config = SETTINGS | {"allow_inf_nan": False}

    format: Literal[1] = 1
    """Version of this format; a file must say it."""


class Stop(_Wish):
    """A config ends at the next boundary; its weights are kept."""

    kind: Literal["stop"] = "stop"
    config: Annotated[str, Field(min_length=1, max_length=200)]
    """Id, name or the name's beginning, as in `c003`."""


class Clone(_Wish):
    """A new config goes on from the state of another one, with other hyperparameters."""

    kind: Literal["clone"] = "clone"
    config: Annotated[str, Field(min_length=1, max_length=200)]
    """That is copied; as for `Stop`."""
    set: Annotated[dict[Name, Value], Field(max_length=1000)] = {}
    """What differs from its hyperparameters."""
    epochs: Whole | None = None
    """That it will have made in all, those of its original included; None: those of the run."""
    fresh: bool = False
    """Whether it starts from initial weights, with the hyperparameters alone copied."""


class Add(_Wish):
    """A new config starts from initial weights."""

    kind: Literal["add"] = "add"
    set: Annotated[dict[Name, Value], Field(min_length=1, max_length=1000)]
    """All its hyperparameters."""
    epochs: Whole | None = None
    """That it makes; None: those of the run."""


Wish: TypeAlias = Stop | Clone | Add
_WISHES: dict[str, type[Wish]] = {"stop": Stop, "clone": Clone, "add": Add}


@dataclass(frozen=True, slots=True)
class Request:
    """A wish and the name of the file that holds it."""

    name: str
    wish: Wish

    def __str__(self) -> str:
        return describe(self.wish)


class Answer(BaseModel):
    """What rank 0 said to a request."""

    model_config = SETTINGS

    format: Literal[1] = 1
    accepted: bool
    text: str
    """One sentence."""


class RequestBox:
    """Rank 0's side: it takes requests and answers them.

    Nothing here ends a run: what cannot be read is refused, and what cannot be written is told
    once.

    Args:
        folder: `RUN/requests`; it need not be there.
        warn: takes a sentence when an answer cannot be written.
        every_s: the folder is looked at no more often.
    """

    def __init__(
        self,
        folder: Path,
        warn: Callable[[str], None] = lambda _: None,
        *,
        every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._folder = folder
        self._warn = warn
        self._every_s = every_s
        self._next_s = -float("inf")
        self._seen: set[str] = set()
        self._has_warned = False

    def poll(self) -> list[Request]:
        """Return what was asked since the last call, in order; each request once.

        Requests that have an answer, of an earlier process too, are not returned. Most calls do
        nothing, so it may be called after every batch.
        """
        now_s = time.monotonic()
        if now_s < self._next_s:
            return []
        self._next_s = now_s + self._every_s
        return self._take(MOST_AT_ONCE)

    def answer(self, request: Request, accepted: bool, text: str) -> None:
        """Write the answer to a request: one sentence for whoever asked."""
        self._write(request.name, Answer(accepted=accepted, text=text))

    def complete(self, answers: Mapping[str, str]) -> None:
        """Answer what was granted before the run was cut off, and had no answer yet.

        Args:
            answers: by the name of a request.
        """
        with contextlib.suppress(OSError):
            for name in _unanswered(self._folder):
                if name in answers:
                    self._write(name, Answer(accepted=True, text=answers[name]))

    def close(self, text: str = "the run ended before this was taken up") -> None:
        """Refuse all that is left; the run takes no more."""
        while left := self._take(MOST_AT_ONCE):
            for request in left:
                self.answer(request, False, text)

    def _take(self, most: int) -> list[Request]:
        try:
            names = [name for name in _unanswered(self._folder) if name not in self._seen]
        except OSError:  # a network filesystem that is away for a while
            return []
        found = []
        for name in names[:most]:
            self._seen.add(name)
            try:
                found.append(Request(name, _read_wish(self._folder / f"{name}.json")))
            except FileNotFoundError:
                continue  # taken back
            except (OSError, ValueError, RecursionError) as error:
                text = f"this is no request: {_reason(error)}"[:1000]
                self._write(name, Answer(accepted=False, text=text))
        return found

    def _write(self, name: str, answer: Answer) -> None:
        self._seen.add(name)
        try:
            write_json(self._folder / f"{name}{_ANSWER}", answer.model_dump())
        except OSError as error:
            if not self._has_warned:
                self._warn(f"requests cannot be answered in '{self._folder}': {error.strerror}")
            self._has_warned = True


def send(folder: Path, wish: Wish) -> Request:
    """Put a request into `RUN/requests`, which is made if it is not there.

    Raises:
        RunFolderError: it cannot be written.
    """
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    request = Request(f"{moment}-{secrets.token_hex(3)}", wish)
    try:
        folder.mkdir(exist_ok=True)
        if folder.is_symlink():
            raise RunFolderError(f"'{folder}' is a link; requests are written into a folder only")
        write_json(folder / f"{request.name}.json", wish.model_dump())
    except OSError as error:
        raise RunFolderError(f"'{folder}' cannot be written: {error.strerror}") from error
    return request


def withdraw(folder: Path, request: Request) -> None:
    """Take a request back that has no answer."""
    (folder / f"{request.name}.json").unlink(missing_ok=True)


def read_answer(folder: Path, request: Request) -> Answer | None:
    """Return the answer to a request; None: there is none yet.

    Raises:
        RunFolderError: it is damaged.
    """
    path = folder / f"{request.name}{_ANSWER}"
    try:
        # The folder is read first, so that a network filesystem looks at it anew.
        if path.name not in os.listdir(folder):
            return None
        return Answer.model_validate(_read_json(path))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise RunFolderError(f"'{path}' is no answer: {explain(error, Answer)}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"'{path}' is no answer: {_reason(error)}") from error


def pending(folder: Path) -> list[Request]:
    """Return the requests that have no answer, in order; damaged ones are left out."""
    found = []
    try:
        for name in _unanswered(folder):
            try:
                found.append(Request(name, _read_wish(folder / f"{name}.json")))
            except (OSError, ValueError, RecursionError):
                continue
    except OSError:
        return []
    return found


def find_config(given: str, names: Sequence[str], run: Path | str) -> int:
    """Return the id of a config of a run, by its id, its name or the name's beginning, as `c003`.

    Args:
        given: what a person wrote.
        names: of all configs, by id.
        run: the run folder, for the message.

    Raises:
        RunFolderError: there is none.
    """
    for config_id, name in enumerate(names):
        if given in (str(config_id), name, name.partition("-")[0]):
            return config_id
    allowed = f"0 to {len(names) - 1}" if len(names) > 1 else "0"
    raise RunFolderError(f"the run '{run}' has no config '{given}'; allowed: {allowed}, or a name")


def describe(wish: Wish) -> str:
    """Return a wish in the words of the command line."""
    words: list[str] = [wish.kind]
    if not isinstance(wish, Add):
        words.append(wish.config)
    if not isinstance(wish, Stop):
        words += [f"--set {name}={_word(value)}" for name, value in wish.set.items()]
        words += [] if wish.epochs is None else [f"--epochs {wish.epochs}"]
    if isinstance(wish, Clone) and wish.fresh:
        words.append("--fresh")
    return " ".join(words)


def _word(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unanswered(folder: Path) -> list[str]:
    """Return the names of requests without an answer, in order.

    The folder is opened each time, and not asked for its time of change: a network filesystem
    answers that from memory, but asks its server when a folder is opened.
    """
    if folder.is_symlink():
        return []
    try:
        entries = set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = (entry.removesuffix(".json") for entry in entries if entry.endswith(".json"))
    return sorted(n for n in names if _NAME.fullmatch(n) and f"{n}{_ANSWER}" not in entries)


def _read_wish(path: Path) -> Wish:
    """Read a request.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no request; says what is wrong.
    """
    record = _read_json(path)
    if not isinstance(record, dict):
        raise ValueError("it is no JSON object")
    if record.get("format") != 1 or record["format"] is True:
        raise ValueError(f"its format is {record.get('format')!r}; allowed: 1")
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in _WISHES:
        raise ValueError(f"its kind is {kind!r}; allowed: {', '.join(_WISHES)}")
    model = _WISHES[kind]
    try:
        return model.model_validate(record)
    except ValidationError as error:
        raise ValueError(explain(error, model)) from error


def _read_json(path: Path) -> Any:
    """Read a small JSON file that somebody else may have made.

    Raises:
        OSError: it cannot be read, is a link, or no plain file.
        ValueError: it is too large, not JSON, or says a thing twice.
    """
    # Not to wait for the other end of a named pipe.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file")
        raw = file.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise ValueError(f"it has more than {LARGEST} bytes")
    found = json.loads(raw, object_pairs_hook=_once_each, parse_constant=_no_constant)
    json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair cannot be shown
    return found


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it names a field twice")
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"it holds {text}, which JSON does not have")


def _reason(error: Exception) -> str:
    """Say in a few words what is wrong with a file."""
    if isinstance(error, OSError):
        is_link = error.errno == errno.ELOOP
        return "it is a link" if is_link else error.strerror or "it cannot be read"
    if isinstance(error, RecursionError):
        return "it is too deep"
    if isinstance(error, UnicodeError):
        return "it is no UTF-8"
    return f"it is not JSON: {error}" if isinstance(error, json.JSONDecodeError) else str(error)
