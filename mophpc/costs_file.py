"""The costs file: what visits, evaluations and hops cost, for `--costs FILE` and from a run.

{"format": 1,
 "configs": {"c000": {"seconds_per_row": 0.002, "overhead_s": 0.01, "eval_s": 0.3},
             "c001": {"visit_s": [1.5, 1.5, 0.7]}},
 "rank_factors": [1.0, 2.0],
 "link": {"latency_s": 0.0002, "bandwidth_bytes_per_s": 1e9}}
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from mophpc.errors import CostsError
from mophpc.files import write_json

MOST_S = 1e9
"""No cost is larger, some thirty years, so that no sum of costs is ever infinite."""
_MOST_SHOWN = 3

_NUMBER, _LIST = "number", "list"

Seconds = Annotated[float, Field(ge=0, le=MOST_S)]


def _kind(value: Any) -> str:
    return _LIST if isinstance(value, list | tuple) else _NUMBER


class _Costs(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ConfigCosts(_Costs):
    """What a config costs: either `seconds_per_row` or `visit_s` must be given."""

    seconds_per_row: Seconds | None = None
    """Training time per row."""
    visit_s: (
        Annotated[
            Annotated[Seconds, Tag(_NUMBER)]
            | Annotated[tuple[Seconds, ...], Field(strict=False, min_length=1), Tag(_LIST)],
            Discriminator(_kind),
        ]
        | None
    ) = None
    """Seconds of each visit, or of the visit to each shard."""
    overhead_s: Seconds = 0.0
    """Time per visit that does not depend on rows, besides `seconds_per_row`."""
    eval_s: Seconds = 0.0
    """Seconds of one evaluation."""
    state_nbytes: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Bytes of its state, which hop."""

    @model_validator(mode="after")
    def _one_of_two(self) -> ConfigCosts:
        if (self.seconds_per_row is None) == (self.visit_s is None):
            given = "both are given" if self.visit_s is not None else "neither is given"
            raise ValueError(f"give either seconds_per_row or visit_s; {given}")
        return self


class LinkCosts(_Costs):
    """What a hop costs: latency_s + state_nbytes / bandwidth_bytes_per_s."""

    latency_s: Seconds
    """Seconds of a hop of no state."""
    bandwidth_bytes_per_s: Annotated[float, Field(ge=1, le=1e18)]
    """Bytes of state per second."""


class CostsFile(_Costs):
    """All costs of an experiment."""

    format: Literal[1] = 1
    """Version of this format."""
    configs: Annotated[dict[str, ConfigCosts], Field(min_length=1)]
    """Config name to its costs."""
    rank_factors: (
        Annotated[
            tuple[Annotated[float, Field(gt=0, le=MOST_S)], ...], Field(strict=False, min_length=1)
        ]
        | None
    ) = None
    """What seconds are multiplied by on each rank; None: by 1."""
    link: LinkCosts | None = None
    """What hops cost; None: nothing."""

    def of(self, name: str) -> ConfigCosts:
        """Return the costs of the config called `name`.

        Raises:
            CostsError: there are none.
        """
        self.check_names([name])
        return self.configs[name]

    def check_names(self, names: Iterable[str]) -> None:
        """Check that all configs have costs; costs of further ones do no harm.

        Raises:
            CostsError: some have none; names the first few.
        """
        missing = [name for name in names if name not in self.configs]
        if missing:
            kind = "config" if len(missing) == 1 else "configs"
            raise CostsError(
                f"there are no costs of {kind} {_some(missing)}; the costs file has "
                f"{_some(list(self.configs))}"
            )


def load_costs(path: Path) -> CostsFile:
    """Read a costs file.

    Raises:
        CostsError: it is missing, not JSON, or a field, key or type in it is wrong.
    """
    if not path.is_file():
        found = "is no file" if path.exists() else "does not exist"
        raise CostsError(
            f"costs file '{path}' {found}; costs are 'equal', 'measured' by a run, or a file such "
            f"as a run's costs.json"
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once_each)
    except CostsError as error:
        raise CostsError(f"{path}: {error}") from error
    except OSError as error:
        raise CostsError(f"{path}: cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise CostsError(f"{path}: not JSON: {error}") from error
    except (ValueError, RecursionError) as error:  # bytes, depths and numbers that nobody means
        raise CostsError(f"{path}: not JSON that can be read") from error
    if not isinstance(raw, dict):
        raise CostsError(f"{path}: holds a {type(raw).__name__}; allowed: an object with 'configs'")
    try:
        return CostsFile.model_validate(raw)
    except ValidationError as error:
        raise CostsError(f"{path}: {_explain(error)}") from error


def save_costs(path: Path, costs: CostsFile) -> None:
    """Write a costs file, whole; equal costs give equal bytes.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    write_json(path, costs.model_dump(exclude_none=True))


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise CostsError(f"'{twice}' is there twice in one object")
    return found


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_SHOWN
    shown = ", ".join(map(repr, names[:_MOST_SHOWN]))  # a name may hold anything
    return f"{shown} and {more} more" if more > 0 else shown


_ALLOWED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "finite_number": "a finite number",
    "model_type": "an object",
    "dict_type": "an object",
    "tuple_type": "a list of numbers",
    "too_short": "at least 1 entry",
}
"""Where pydantic's words are not a user's."""


def _explain(error: ValidationError) -> str:
    """Say in one sentence what is wrong with the first bad field, and what is allowed."""
    # An unknown field comes first: it is often the misspelt one that is then missing.
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    kind, location = first["type"], first["loc"]
    # The fourth part may be pydantic's word for which of the two kinds of visit_s was given.
    parts = [*location[:3], *(part for part in location[3:] if part not in (_NUMBER, _LIST))]
    place = ".".join(str(part) for part in parts)
    if kind == "extra_forbidden":
        model: type[BaseModel] = CostsFile
        if len(location) > 1:
            model = LinkCosts if location[0] == "link" else ConfigCosts
        return f"unknown field '{place}'; allowed here: {', '.join(model.model_fields)}"
    if kind == "missing":
        return f"field '{place}' is missing"
    if kind == "value_error":
        return f"{place}: {first['msg'].removeprefix('Value error, ')}"
    allowed = _ALLOWED.get(kind, first["msg"].removeprefix("Input should be "))
    for theirs, ours in (
        ("greater than or equal to", "at least"),
        ("less than or equal to", "at most"),
    ):
        allowed = allowed.replace(theirs, ours)
    return f"field '{place}' is {_short(first.get('input'))}; allowed: {allowed}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
