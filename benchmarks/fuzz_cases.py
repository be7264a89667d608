"""What is done to damaged files, and what may come of it.

A command may succeed, if what it gives is what it gave before the damage; or say in one sentence
what is wrong. It may not show a traceback, hang, write outside, or give something else.
"""

# ruff: noqa: ARG001  # judges are all called alike

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz_mutate import damage_file
from fuzz_world import RUN, Said, World, call, same_weights

from mophpc.errors import ExperimentError, MophpcError
from mophpc.experiment import load_experiment
from mophpc.saved import load_model, load_run

MOST_VISITS = 200
"""A mutated experiment may ask for a run of years: that is not carried out."""
MOST_WORDS = 4000

_INTERNAL = re.compile(r": [A-Z]\w*(Error|Exception): ")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

Judge = Callable[[World, Said], str]


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    number: int
    kind: str
    file: str
    damage: str
    command: str
    verdict: str
    """`refused`, `right`, or what is bad."""
    took_s: float
    text: str = ""

    @property
    def is_bad(self) -> bool:
        return self.verdict not in ("refused", "right")


def judge(world: World, said: Said, right: Judge) -> str:
    """Return what is to be said of a command's end."""
    text = said.out + said.err
    spilt = world.spilt()
    if said.hangs:
        return "hang"
    if said.raised:
        return f"raised {said.raised[:200]}"
    if "Traceback" in text:
        return "traceback"
    if spilt:
        return f"outside: {spilt}"
    if said.status == 0:
        wrong = right(world, said)
        return f"wrong success: {wrong}" if wrong else "right"
    if said.status not in (1, 2):
        return f"exit status {said.status}"
    return _sentence(said) or "refused"


def _sentence(said: Said) -> str:
    """Return what is wrong with how a command refuses."""
    lines = [line for line in said.err.splitlines() if line.strip()]
    own = [line for line in lines if not line.startswith(("note:", "reading", "trying"))]
    if said.status == 2 and (len(own) != 1 or not own[0].startswith("mophpc: ")):
        return f"not one sentence but {len(own)}"
    if said.status == 1 and not own and "NOT EQUAL" not in said.out and "damaged" not in said.out:
        return "exit status 1 and nothing said"
    if any(_INTERNAL.search(line) for line in own) and said.status == 1:
        return "an internal error"
    if any(len(line) > MOST_WORDS for line in own):
        return "a sentence without end"
    if _CONTROL.search(said.err):
        return "control characters"
    return ""


def anything(world: World, said: Said) -> str:
    """Whatever is printed is right."""
    return ""


def as_before(run: str) -> Judge:
    """Return a judge of a run's results: those that it has undamaged."""

    def right(world: World, said: Said) -> str:
        folder = world.now / run
        found = json.loads((folder / "results.json").read_text())["configs"]
        if [row["config"] for row in found] != list(world.rows):
            return "other configs"
        for row in found:
            known = world.rows[row["config"]]
            if row["hyperparameters"] != known["hyperparameters"]:
                return f"other hyperparameters of {row['config']}"
            if (row["status"], row["epochs"]) != ("done", known["epochs"]):
                return f"{row['config']} is {row['status']} after {row['epochs']} epochs"
            if row["state_sha256"] == known["state_sha256"]:
                if _shards(row) != _shards(known):
                    return f"the route of {row['config']} is not that of its state"
                weights = Path("checkpoints") / row["config"] / "model.safetensors"
                if not same_weights(folder / weights, world.pristine / "whole" / weights):
                    return f"other weights of {row['config']}"
                if row["final"] != known["final"]:
                    return f"other final metrics of {row['config']}"
            elif _shards(row) == _shards(known):
                return f"another state of {row['config']}"
            elif call("verify", folder, "-c", row["config_id"]).status:
                return f"a state of {row['config']} that is none of its route"
        return ""

    return right


def _shards(row: dict[str, Any]) -> list[tuple[int, int]]:
    return [(visit["epoch"], visit["shard"]) for visit in row["route"]]


def verified(world: World, said: Said) -> str:
    """Judge a run of another experiment."""
    again = call("verify", world.now / "new")
    return "" if again.status == 0 and not again.raised else f"not verified: {again}"


def exported(world: World, said: Said) -> str:
    """Judge an export."""
    out = world.now / "out"
    about = json.loads((out / "config.json").read_text())
    known = world.rows.get(about["config"])
    if known is None:
        return "of a config that never was"
    if about["hyperparameters"] != known["hyperparameters"]:
        return "other hyperparameters"
    if known["config_id"] != world.results["best"]:
        return "not the best config"
    name = f"epoch-{known['best_epoch']:04d}.safetensors"
    before = world.pristine / "whole" / "checkpoints" / about["config"] / name
    return "" if same_weights(out / "model.safetensors", before) else "other weights"


def exported_weights(world: World, said: Said) -> str:
    """Judge an export where the run's experiment is damaged, and so perhaps another."""
    return exported(world, said)


@dataclass(frozen=True)
class Kind:
    """Files that are damaged, and commands that read them."""

    files: str
    """A pattern, below `now`."""
    commands: tuple[tuple[str, Judge], ...]


RESUME = "run tune.toml --out {run} --resume -n {ranks}"
NEW = "run tune.toml --out new -n {ranks}"
READ = (("load whole", anything), ("export whole out", exported), ("report whole", anything))

KINDS: dict[str, Kind] = {
    "experiment": Kind(
        "tune.toml",
        (
            (NEW, verified),
            ("plan tune.toml -n 2", anything),
            ("simulate tune.toml -n 2", anything),
            (RESUME.replace("{run}", "cut"), as_before("cut")),
        ),
    ),
    "store": Kind(
        "rows.zarr/**/*",
        (
            (NEW, as_before("new")),
            (RESUME.replace("{run}", "cut"), as_before("cut")),
            (NEW + " --stage staged", as_before("new")),
            ("verify whole", anything),
            ("inspect rows.zarr", anything),
            ("inspect rows.zarr --check", anything),
        ),
    ),
    "states": Kind("cut/states/*/*", ((RESUME.replace("{run}", "cut"), as_before("cut")),)),
    "journal": Kind(
        "cut/journal.jsonl",
        ((RESUME.replace("{run}", "cut"), as_before("cut")), ("report cut", anything)),
    ),
    "metrics": Kind(
        "cut/metrics.jsonl",
        ((RESUME.replace("{run}", "cut"), as_before("cut")), ("report cut", anything)),
    ),
    "metrics of an ended run": Kind("whole/metrics.jsonl", READ),
    "results": Kind(
        "whole/results.json",
        (*READ, ("verify whole", anything), (RESUME.replace("{run}", "whole"), as_before("whole"))),
    ),
    "weights": Kind(
        "whole/checkpoints/*/*",
        (
            ("export whole out", exported),
            ("load whole", anything),
            (RESUME.replace("{run}", "whole"), anything),
        ),
    ),
    "weights of a cut run": Kind(
        "cut/checkpoints/*/*", ((RESUME.replace("{run}", "cut"), as_before("cut")),)
    ),
    "experiment of a run": Kind(
        "*/experiment.toml",
        (
            (RESUME.replace("{run}", "cut"), as_before("cut")),
            ("load whole", anything),
            ("export whole out", exported_weights),
            ("report whole", anything),
            ("verify whole", anything),
            ("status cut", anything),
        ),
    ),
    "status": Kind("*/status.json", (("status cut", anything), ("status whole --json", anything))),
    "places": Kind(
        "*/places/*", (("status cut", anything), (RESUME.replace("{run}", "cut"), as_before("cut")))
    ),
    "plan": Kind(
        "whole/plan.json",
        (
            ("run tune.toml --out new --replay whole/plan.json -n 2", as_before("new")),
            ("run tune.toml --out new --replay whole/plan.json -n 2", as_before("new")),
            ("report whole", anything),
        ),
    ),
    "plan of a cut run": Kind(
        "cut/plan.json",
        ((RESUME.replace("{run}", "cut"), as_before("cut")), ("report cut", anything)),
    ),
    "costs": Kind(
        "*/costs.json",
        (
            ("plan tune.toml -n 2 --costs {file}", anything),
            ("simulate tune.toml -n 2 --costs {file}", anything),
            ("run tune.toml --out new --costs {file} -n 2", as_before("new")),
            (RESUME.replace("{run}", "cut"), as_before("cut")),
        ),
    ),
    "events": Kind(
        "*/events/*",
        (
            ("report whole", anything),
            ("report cut", anything),
            (RESUME.replace("{run}", "cut"), as_before("cut")),
        ),
    ),
    "links": Kind(
        "*/**/*",
        (
            (RESUME.replace("{run}", "cut"), as_before("cut")),
            (RESUME.replace("{run}", "cut"), as_before("cut")),
            (RESUME.replace("{run}", "whole"), anything),
            ("report whole", anything),
            ("status cut", anything),
            ("stop cut c000", anything),
            ("verify whole", anything),
            ("export whole out", exported),
            (NEW, as_before("new")),
        ),
    ),
}


def case(world: World, kind: str, number: int) -> Outcome:
    """Carry out one case."""
    rng = random.Random(f"{kind} {number}")
    world.reset()
    about = KINDS[kind]
    command, right = rng.choice(about.commands)
    if kind == "links":
        file, damage = _link(rng, world, command)
    else:
        # Of the kinds of files that there are, each alike: chunks are many.
        found = sorted(path for path in world.now.glob(about.files) if path.is_file())
        kinds = sorted({_sort(path) for path in found})
        sort = rng.choice(kinds)
        path = rng.choice([path for path in found if _sort(path) == sort])
        file = str(path.relative_to(world.now))
        damage = damage_file(rng, path)
        if rng.random() < 0.15 and path.is_file():
            damage += ", " + damage_file(rng, path)
    said = _carry_out(world, command, rng, file)
    verdict = judge(world, said, right)
    text = "" if verdict == "right" else (said.err.strip() or said.out.strip())[-1500:]
    return Outcome(number, kind, file, damage, command, verdict, said.took_s, text)


def _sort(path: Path) -> str:
    name = re.sub(r"\d+", "0", path.name)
    return name if path.parent.name != "c" else "object"


def _link(rng: random.Random, world: World, command: str) -> tuple[str, str]:
    """Put a link in the place of something; it leads out, or to nothing."""
    run = next(name for name in ("cut", "whole", "new") if name in command)
    folder = world.now / run
    if run == "new":
        folder.mkdir()
        names = (
            "events",
            "logs",
            "checkpoints",
            "states",
            "places",
            "experiment.toml",
            "plan.json",
        )
        path = folder / rng.choice((*names, "run.lock", "requests"))
    else:
        depth = rng.choice((1, 1, 2, 3))
        found = [p for p in folder.rglob("*") if len(p.relative_to(folder).parts) == depth]
        path = rng.choice(sorted(found))
        if rng.random() < 0.15:
            path = path.with_name(rng.choice(("states", "requests", "places", "report.html")))
    is_folder = path.is_dir() or "." not in path.name
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    target = world.outside / ("folder" if is_folder else "secret")
    if rng.random() < 0.3:
        target = world.outside / "new"
    path.symlink_to(os.path.relpath(target, path.parent) if rng.random() < 0.5 else target)
    return str(path.relative_to(world.now)), f"link to {target.name}"


def _carry_out(world: World, command: str, rng: random.Random, file: str) -> Said:
    words = command.format(ranks=rng.choice((1, 2, 3)), file=file).split()
    here = Path.cwd()
    os.chdir(world.now)
    try:
        if words[0] == "load":
            return _load(Path(words[1]))
        if words[0] == "run":
            if not _is_small(Path(words[1])):
                words = ["plan", words[1], "-n", "2"]
                said = call(*words)
                # Nothing was run, so nothing is there to be judged.
                return said if said.status else Said(2, "", "mophpc: too large to be run here")
            words += RUN
        if words[0] == "stop":
            words += ["--wait", "0"]
        said = call(*words)
        if words[0] == "export" and said.status == 0:
            load_model("out")
        return said
    finally:
        os.chdir(here)


def _is_small(toml: Path) -> bool:
    try:
        found = load_experiment(toml)
    except (ExperimentError, OSError):
        return True
    except Exception:
        return True  # it will be seen
    configs = len(found.configs) or 3 * max(1, len(found.space))
    configs = max(configs, found.search.configs or 0)
    return found.epochs * configs <= MOST_VISITS


def _load(run: Path) -> Said:
    """Read a run from Python."""
    from fuzz_world import HangError, _limit

    try:
        with _limit(60.0):
            found = load_run(run)
            found.frame()
            found.history()
            found.model()
    except MophpcError as error:
        return Said(error.exit_status, "", f"mophpc: {error}")
    except HangError:
        return Said(0, "", "", hangs=True)
    except Exception as error:
        return Said(0, "", "", raised=f"{type(error).__name__}: {error}")
    return Said(0, "", "")


__all__ = ["KINDS", "Outcome", "case"]
