"""What the papers' ImageNet workload would take: a projection, nothing of it is measured here.

    python benchmarks/projection.py [--case 8x16 64x512] [--costs FILE]

16 configs (VGG16 and ResNet50, batch sizes 32 and 256) train for 10 epochs on 8 nodes with 10
Gbit/s. `mophpc simulate` says what MOP takes; simple models below say what a parameter server,
all-reduce, model averaging and task parallelism take. The results are printed beside what the
Cerebro paper measured on its cluster, and then the same for 64 nodes and 512 configs.

All numbers and their sources are in imagenet-workload.json. Seconds of training are those of a
later paper of the same group, so nothing is fitted in the first column; in the second one the
speed of a node is fitted to what task parallelism took, and only that. Takes some minutes.
--costs also writes the costs file of the first case, for `mophpc simulate`.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import mophpc

WORKLOAD = Path(__file__).parent / "imagenet-workload.json"
CASES = ("8x16", "64x512")
FITTED_TO = "task parallel"
JITTER = 0.03
MOST_RENEWED = 10_000
"""Visits up to which renewals are simulated; with exact costs they change nothing."""

ASSUMPTIONS = """
Assumptions, of all: nodes are equal; a config's epoch takes as long on a node in every system, and
1/p of that on its p-th part of the data; links give all of their 10 Gbit/s, both ways at once, and
messages have no latency; loading data, starting and ending take no time.
- parameter server: one server, on a node of its own. Each worker fetches the weights and sends a
  gradient for each of its minibatches, without overlap, at its own pace, until the server's link is
  full. The lower number; the upper one: the link carries one direction at a time. Configs train one
  after another.
- all-reduce (Horovod): each minibatch ends with a ring that moves 2 (p - 1) / p gradients over each
  link. The lower number: wholly hidden behind computing; the upper one: not at all. Each node has
  the config's batch size, so that a step is p times as large. Configs train one after another.
- model averaging: p copies of the weights go to one node and back, once per epoch and config.
- task parallel: longest config first, each whole config on one node; all data are on every node
  before the clock starts.
- MOP: `mophpc simulate`; state with Adam's moments hops at full speed, visits differ by 3%, costs
  are known (a run measures them)."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Configs that cost the same."""

    name: str
    count: int
    batch_size: int
    epoch_s: float
    """Seconds of an epoch on one node."""
    weight_nbytes: int
    state_nbytes: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Configs to train, and on what."""

    kinds: tuple[Kind, ...]
    nodes: int
    epochs: int
    rows: int
    bandwidth_bytes_per_s: float

    @property
    def num_configs(self) -> int:
        return sum(kind.count for kind in self.kinds)

    def on(self, nodes: int, num_configs: int) -> Workload:
        """Return the workload with as many configs of each kind as fill up `num_configs`."""
        times, rest = divmod(num_configs, self.num_configs)
        if rest or not times:
            raise ValueError(f"{num_configs} configs are no multiple of {self.num_configs}")
        kinds = tuple(replace(kind, count=kind.count * times) for kind in self.kinds)
        return replace(self, kinds=kinds, nodes=nodes)

    def scaled(self, factor: float) -> Workload:
        """Return the workload on nodes where computing takes `factor` times as long."""
        kinds = tuple(replace(kind, epoch_s=kind.epoch_s * factor) for kind in self.kinds)
        return replace(self, kinds=kinds)


def papers_workload() -> Workload:
    """Return the workload of imagenet-workload.json."""
    given = {name: entry.get("value") for name, entry in _given().items()}
    costs = epoch_costs_s(
        3600 * given["training_machine_h_per_epoch"],
        given["resnet50_32_epoch_s"],
        given["vgg16_over_resnet50"],
        given["configs_per_kind"],
    )
    kinds = []
    for (model, batch_size), epoch_s in costs.items():
        weights = given["parameters"][model] * given["bytes_per_parameter"]
        kinds.append(
            Kind(
                f"{model}-{batch_size}",
                given["configs_per_kind"],
                batch_size,
                epoch_s,
                weights,
                weights * given["state_per_parameter"],
            )
        )
    return Workload(
        tuple(kinds),
        given["nodes"],
        given["epochs"],
        given["images"],
        given["bandwidth_bytes_per_s"],
    )


def _given() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(WORKLOAD.read_text())
    return found


def epoch_costs_s(
    total_s: float, resnet_s: float, ratio: float, count: int
) -> dict[tuple[str, int], float]:
    """Return what an epoch of each kind takes on one node.

    Args:
        total_s: an epoch of all configs together.
        resnet_s: an epoch of ResNet50 with batch size 32.
        ratio: VGG16 over ResNet50, taken to be that of both batch sizes.
        count: configs of each kind.
    """
    large_s = (total_s / count - resnet_s * (1 + ratio)) / (1 + ratio)
    return {
        ("resnet50", 32): resnet_s,
        ("vgg16", 32): resnet_s * ratio,
        ("resnet50", 256): large_s,
        ("vgg16", 256): large_s * ratio,
    }


# --- other systems: seconds of the whole workload


def parameter_server_s(work: Workload, *, both_ways: bool) -> float:
    """Return what asynchronous training through one server takes, configs one after another."""
    total_s = 0.0
    for kind in work.kinds:
        transfer_s = kind.weight_nbytes / work.bandwidth_bytes_per_s
        steps = _steps(work, kind)
        server_s = steps * work.nodes * transfer_s * (1 if both_ways else 2)
        worker_s = kind.epoch_s / work.nodes + steps * 2 * transfer_s
        total_s += kind.count * work.epochs * max(server_s, worker_s)
    return total_s


def all_reduce_s(work: Workload, *, hidden: bool) -> float:
    """Return what training with a ring all-reduce per step takes, configs one after another."""
    total_s = 0.0
    for kind in work.kinds:
        share = 2 * (work.nodes - 1) / work.nodes
        ring_s = _steps(work, kind) * share * kind.weight_nbytes / work.bandwidth_bytes_per_s
        compute_s = kind.epoch_s / work.nodes
        epoch_s = max(ring_s, compute_s) if hidden else ring_s + compute_s
        total_s += kind.count * work.epochs * epoch_s
    return total_s


def model_averaging_s(work: Workload) -> float:
    """Return what averaging once per epoch takes, configs one after another."""
    return sum(
        kind.count
        * work.epochs
        * (
            kind.epoch_s / work.nodes
            + 2 * work.nodes * kind.weight_nbytes / work.bandwidth_bytes_per_s
        )
        for kind in work.kinds
    )


def task_parallel_s(work: Workload) -> float:
    """Return what whole configs on single nodes take, the longest first."""
    free_s = [0.0] * work.nodes
    for kind in sorted(work.kinds, key=lambda kind: -kind.epoch_s):
        for _ in range(kind.count):
            heapq.heappush(free_s, heapq.heappop(free_s) + work.epochs * kind.epoch_s)
    return max(free_s)


def _steps(work: Workload, kind: Kind) -> int:
    return math.ceil(work.rows / (kind.batch_size * work.nodes))


# --- MOP


def costs_file(work: Workload) -> dict[str, Any]:
    """Return the workload as a costs file of `mophpc simulate`."""
    return {
        "format": 1,
        "configs": {
            f"{kind.name}-{number}": {
                "visit_s": kind.epoch_s / work.nodes,
                "state_nbytes": kind.state_nbytes,
            }
            for kind in work.kinds
            for number in range(kind.count)
        },
        "link": {"latency_s": 0.0, "bandwidth_bytes_per_s": work.bandwidth_bytes_per_s},
    }


def simulate_words(work: Workload, costs: str) -> list[str]:
    """Return the command that simulates the workload."""
    words = ["simulate", "--costs", costs, "--ranks", str(work.nodes)]
    words += ["--epochs", str(work.epochs), "--noise", "0", "--jitter", str(JITTER)]
    renews = work.num_configs * work.nodes * work.epochs <= MOST_RENEWED
    return [*words, *(["--seeds", "5"] if renews else ["--seeds", "1", "--no-renewal"])]


def mop_s(work: Workload) -> tuple[float, float]:
    """Return the seconds of `mophpc simulate` for a balanced plan, and what no schedule beats."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "costs.json"
        file.write_text(json.dumps(costs_file(work)))
        found = json.loads(mophpc(*simulate_words(work, str(file)), "--json"))
    return found["rows"][-1]["makespan"], found["lower_bound"]


# --- the tables


def hours(work: Workload) -> dict[str, tuple[float, float]]:
    """Return the lowest and the highest projected hours by system."""
    server = [parameter_server_s(work, both_ways=both) for both in (True, False)]
    ring = [all_reduce_s(work, hidden=hidden) for hidden in (True, False)]
    averaging, alone, (mop, _) = model_averaging_s(work), task_parallel_s(work), mop_s(work)
    spans = {
        "parameter server": server,
        "all-reduce": ring,
        "model averaging": [averaging],
        "task parallel": [alone],
        "MOP": [mop],
    }
    return {name: (min(s) / 3600, max(s) / 3600) for name, s in spans.items()}


def beside(projected: tuple[float, float], published: float) -> str:
    """Return how far the projection is off what was published."""
    low, high = projected
    if low <= published <= high and low < high:
        return "within"
    nearest = low if published < low else high
    return f"{nearest / published - 1:+.0%}"


def shown(projected: tuple[float, float]) -> str:
    """Return hours as text, a range where there is one."""
    low, high = projected
    return f"{low:.1f}" if low == high else f"{low:.1f} to {high:.1f}"


def table(work: Workload, fitted: Workload, published: dict[str, float] | None) -> None:
    """Print the projected hours of a workload, as given and with the fitted speed of nodes."""
    plain, with_fit = hours(work), hours(fitted)
    print(f"\n### {work.nodes} nodes, {work.num_configs} configs, {work.epochs} epochs: hours\n")
    if published is None:
        print("| system | nothing fitted | speed of nodes fitted |\n|---|---|---|")
        for name, span in plain.items():
            print(f"| {name} | {shown(span)} | {shown(with_fit[name])} |")
        return
    print("| system | published | nothing fitted | off by | speed of nodes fitted | off by |")
    print("|---|---|---|---|---|---|")
    for name, span in plain.items():
        fit = "the fit" if name == FITTED_TO else beside(with_fit[name], published[name])
        print(
            f"| {name} | {published[name]} | {shown(span)} | {beside(span, published[name])} "
            f"| {shown(with_fit[name])} | {fit} |"
        )


def inputs(work: Workload, factor: float, published: dict[str, float], later: float) -> None:
    """Print what the projection is made from."""
    print("A projection: no number below is measured by this project.\n")
    print("| kind of config | epoch on one node | weights | state that hops |\n|---|---|---|---|")
    for kind in work.kinds:
        sizes = f"{kind.weight_nbytes / 1e6:.0f} MB | {kind.state_nbytes / 1e6:.0f} MB"
        print(f"| {kind.name} | {kind.epoch_s:,.0f} s | {sizes} |")
    print(
        "\nSeconds of epochs come from a later paper: the sum over all 16 configs and those of "
        "resnet50-32 are measured there, and VGG16 / ResNet50 is estimated from it. None of the "
        "hours published by the Cerebro paper goes into the column 'nothing fitted'. (With MOP the "
        f"later paper's whole run took {later:.1f} h; as its training is the input here, that is "
        "no check of it.)\n"
        f"Fitted is one number: computing takes {factor:.3f} times as long, so that {FITTED_TO} "
        f"takes {published[FITTED_TO]} h; the network is as it was."
    )


def case(text: str) -> tuple[int, int]:
    """Return nodes and configs of `8x16`."""
    nodes, _, configs = text.partition("x")
    if not (nodes.isdigit() and configs.isdigit() and int(nodes) > 1):
        raise argparse.ArgumentTypeError(
            f"'{text}' is no case; allowed: nodes above 1 x configs, as in 8x16"
        )
    if int(configs) % 16 or not int(configs):
        raise argparse.ArgumentTypeError(
            f"'{text}' has {configs} configs; allowed: multiples of the workload's 16"
        )
    return int(nodes), int(configs)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", nargs="+", type=case, default=[case(text) for text in CASES])
    parser.add_argument("--costs", type=Path, help="write the first case's costs file here")
    arguments = parser.parse_args(words)
    given = _given()
    work = papers_workload()
    published = given["published_hours"]["value"]
    factor = published[FITTED_TO] * 3600 / task_parallel_s(work)
    inputs(work, factor, published, given["later_hours"]["value"])
    for nodes, num_configs in arguments.case:
        one = work.on(nodes, num_configs)
        is_papers = (nodes, num_configs) == (work.nodes, work.num_configs)
        table(one, one.scaled(factor), published if is_papers else None)
        print(f"\nMOP: mophpc {' '.join(simulate_words(one, 'COSTS'))}", flush=True)
    print(ASSUMPTIONS)
    if arguments.costs is not None:
        first = work.on(*arguments.case[0])
        arguments.costs.write_text(json.dumps(costs_file(first), indent=1) + "\n")


if __name__ == "__main__":
    main()
