"""What all settings share: they do not change, know their names, and say mistakes in a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from mophpc.errors import ExperimentError

SETTINGS = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)
"""Of all settings: they name what they do not know, and do not change."""

_ALLOWED = {
    "too_short": "a list of at least 1 value",
    "model_type": "a table of fields",
    "dict_type": "a table",
    "string_too_short": "text that is not empty",
}
"""Where pydantic's words are not a user's."""

_BOUNDS = ("uniform", "loguniform", "integer")
_VALUE_TYPES = ("bool", "int", "float", "str")


if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _InASentence(ModelMetaclass):
    """Of settings: calling the class is what a user does, and reading a file is not."""

    if not TYPE_CHECKING:  # a class is called with its fields

        def __call__(self, *args: Any, **fields: Any) -> Any:
            try:
                return super().__call__(*args, **fields)
            except ValidationError as error:
                raise ExperimentError(explain(error, self)) from error


class Settings(BaseModel, metaclass=_InASentence):
    """Base of all settings.

    Raises:
        ExperimentError: a field is unknown, missing or wrong; says what is allowed.
    """

    model_config = SETTINGS


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Say in one sentence what is wrong with the first bad field, and what is allowed.

    Args:
        error: what pydantic found.
        model: whose fields they are.
    """
    # An unknown field comes first: it is often the misspelt one that is then missing.
    found = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    first = found[0]
    location = first["loc"]
    place = ".".join(str(part) for part in location)
    kind, given = first["type"], first.get("input")
    if kind == "extra_forbidden":
        allowed = ", ".join(_fields_at(location[:-1], model))
        return f"unknown field '{place}'; allowed here: {allowed}"
    if kind == "missing":
        return f"field '{place}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    if kind == "whole":
        return message
    if kind == "value_error":
        return f"{place}: {message}" if place else message
    if location[-1] in _VALUE_TYPES:
        place = ".".join(str(part) for part in location[:-1])
        message = "a boolean, integer, float or string"
    if kind == "string_pattern_mismatch":
        message = "a name of letters, digits and underscores that does not start with a digit"
        place = place.removesuffix(".[key]")
    message = _ALLOWED.get(kind, message)
    if location[-1] in _BOUNDS and kind in ("too_short", "too_long", "list_type"):
        message = "a list of 2 numbers, the lowest and the highest"
    message = message.removeprefix("Input should be ").removeprefix("a valid ")
    message = message.replace("greater than or equal to", "at least")
    message = message.replace("less than or equal to", "at most")
    return f"field '{place}' is {given!r}; allowed: {message}"


def _fields_at(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    for part in location:
        field = model.model_fields.get(str(part))
        annotation = None if field is None else field.annotation
        # As a table, or as nothing at all.
        kinds = [k for k in (annotation, *get_args(annotation)) if isinstance(k, type)]
        models = [kind for kind in kinds if issubclass(kind, BaseModel)]
        if not models:
            return ["nothing"]
        model = models[0]
    return list(model.model_fields)
