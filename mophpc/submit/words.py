"""What people write for a cluster, checked; pure functions of texts."""

from __future__ import annotations

import re
import shlex

from mophpc.errors import LaunchError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]*")
_NAMES = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@,/-]*")
_TIME = re.compile(r"(?:(\d+)-(\d+)(?::(\d+))?(?::(\d+))?|(\d+)(?::(\d+))?(?::(\d+))?)")
_SIGNAL = re.compile(r"(?:SIG)?(USR1|USR2)@(\d+)")
_MEMORY = re.compile(r"(\d+)([KMGT]?)", re.IGNORECASE)
_OPTION = re.compile(r"(?:--)?([a-z][a-z0-9-]*)(?:=(.*))?")
_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")
_LABEL = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@-]*")

DAY_S = 86_400


def check_line(option: str, value: str) -> str:
    """Return a text that stays on its line wherever it is put.

    Raises:
        LaunchError: it is empty, or a character in it cannot be printed, such as a line break.
    """
    if not value.strip():
        raise LaunchError(f"{option} is empty; leave it out, or say something")
    if not value.isprintable():
        raise LaunchError(
            f"{option} is {value!r}; allowed: one line, without characters that cannot be printed"
        )
    return value


def check_name(option: str, value: str) -> str:
    """Return the name of a job.

    Raises:
        LaunchError: it has other characters than a name has.
    """
    if _NAME.fullmatch(value) is None or len(value) > 64:
        raise LaunchError(
            f"{option} is {value!r}; allowed: up to 64 letters, digits and any of . _ + @ -, the "
            "first a letter, a digit or _"
        )
    return value


def check_names(option: str, value: str) -> str:
    """Return what a site calls its partitions, accounts or qualities of service.

    Raises:
        LaunchError: it has other characters than such a name has.
    """
    if _NAMES.fullmatch(value) is None:
        raise LaunchError(
            f"{option} is {value!r}; allowed: letters, digits and any of . _ + @ , / -, the first "
            "a letter, a digit or _"
        )
    return value


def check_label(option: str, value: str, longest: int) -> str:
    """Return a name in Kubernetes: a DNS label.

    Raises:
        LaunchError: it is none, or too long.
    """
    if _LABEL.fullmatch(value) is None or len(value) > longest:
        raise LaunchError(
            f"{option} is {value!r}; allowed: up to {longest} lower-case letters, digits and -, "
            "the first a letter and the last none of -"
        )
    return value


def check_image(option: str, value: str) -> str:
    """Return the name of a container image.

    Raises:
        LaunchError: it has other characters than such a name has.
    """
    if _IMAGE.fullmatch(value) is None:
        raise LaunchError(
            f"{option} is {value!r}; allowed: an image, as registry.example.org/mophpc:1.0"
        )
    return value


def check_count(option: str, value: int, least: int, most: int) -> int:
    """Return a number that is within its limits.

    Raises:
        LaunchError: it is not.
    """
    if not least <= value <= most:
        raise LaunchError(f"{option} is {value}; allowed: {least} to {most}")
    return value


def seconds_of(option: str, value: str) -> int:
    """Return how long a time of Slurm's is.

    Raises:
        LaunchError: it is none of Slurm's forms, or no time at all.
    """
    found = _TIME.fullmatch(value)
    if found is None or not value.isascii():
        raise LaunchError(
            f"{option} is {value!r}; allowed: minutes, minutes:seconds, hours:minutes:seconds, "
            "days-hours, days-hours:minutes or days-hours:minutes:seconds, as 4:00:00 for 4 hours"
        )
    days, hours, minutes, seconds, *plain = (int(part or 0) for part in found.groups())
    if found[1] is None:
        first, second, third = plain
        if found[7] is not None:
            hours, minutes, seconds = first, second, third
        else:
            minutes, seconds = first, second
    total = days * DAY_S + hours * 3600 + minutes * 60 + seconds
    if not 0 < total <= 3650 * DAY_S:
        raise LaunchError(f"{option} is {value!r}; allowed: more than nothing, up to 10 years")
    return total


def parse_signal(option: str, value: str) -> tuple[str, int]:
    """Return a signal's name without SIG, and how many seconds before the time limit it comes.

    Raises:
        LaunchError: it is not SIGNAL@SECONDS, or Slurm would not take it.
    """
    found = _SIGNAL.fullmatch(value.upper())
    if found is None:
        raise LaunchError(
            f"{option} is {value!r}; allowed: USR1 or USR2, then @ and the seconds "
            "before the time limit, as USR1@120"
        )
    return found[1], check_count(f"the seconds of {option} {value}", int(found[2]), 10, 65_535)


def check_memory(option: str, value: str) -> str:
    """Return an amount of memory as Slurm has it; without a letter it is in megabytes.

    Raises:
        LaunchError: it is none.
    """
    found = _MEMORY.fullmatch(value)
    if found is None or not value.isascii() or int(found[1]) == 0:
        raise LaunchError(f"{option} is {value!r}; allowed: a number and K, M, G or T, as 64G")
    return value.upper()


def parse_option(option: str, value: str, own: dict[str, str]) -> str:
    """Return the text behind `#SBATCH` of an option that only Slurm knows.

    Args:
        option: what it is called, for messages.
        value: as `constraint=a100` or `--exclusive`.
        own: options that may not be given so, and why or what is to be given instead.

    Raises:
        LaunchError: it is one of those, or cannot be put on its line.
    """
    check_line(option, value)
    found = _OPTION.fullmatch(value)
    if found is None:
        raise LaunchError(
            f"{option} is {value!r}; allowed: a long option of sbatch, as constraint=a100 or "
            "exclusive"
        )
    name, text = found[1], found[2]
    if name in own:
        raise LaunchError(f"{option} is {value!r}, but {own[name]}")
    if text is None:
        return f"--{name}"
    if any(mark in text for mark in "\"'\\`$"):
        raise LaunchError(f"{option} is {value!r}; allowed: a value without any of \" ' \\ ` $")
    return f"--{name}={text}" if re.fullmatch(r"[^\s#]+", text) else f'--{name}="{text}"'


def shell_path(option: str, value: str) -> str:
    """Return a folder as a word for bash, where $NAME and ${NAME} stand for the environment.

    They are looked up when the script runs, and it ends where one is not set.

    Raises:
        LaunchError: it would not stay on its line.
    """
    check_line(option, value)
    parts, at = [], 0
    for found in _VARIABLE.finditer(value):
        if found.start() > at:
            parts.append(shlex.quote(value[at : found.start()]))
        parts.append(f'"${{{found[1] or found[2]}:?}}"')
        at = found.end()
    if at < len(value):
        parts.append(shlex.quote(value[at:]))
    return "".join(parts)
