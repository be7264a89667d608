"""The real program of a rank with a small trainer in numpy, and what it did."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mophpc.errors import Place
from mophpc.events import EventLog
from mophpc.experiment import Objective
from mophpc.files import read_lines
from mophpc.hop.local import LocalTransport, LocalWorld
from mophpc.hop.progress import Progress
from mophpc.hop.transport import Transport
from mophpc.outputs import Checkpoints
from mophpc.run.folder import RunFolder
from mophpc.run.rank.carrier import Carrier
from mophpc.run.rank.keeper import Keeper
from mophpc.run.rank.program import Equipment, RankProgram
from mophpc.run.rank.states import StateKeeper
from mophpc.run.writer import Writer
from mophpc.schedule import Plan
from mophpc.schedule.orders import Orders, Promises, whole
from mophpc.search.space import Config
from mophpc.state_folder import stem_of
from mophpc.train.session import Outcome

Arena = np.ndarray[Any, np.dtype[np.uint8]]
LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a config's state, and of the rest of it that is no arena."""

    arena: int
    rest: int


@dataclass(slots=True)
class Visited:
    """A visit that was made."""

    config_id: int
    epoch: int
    shard: int
    rank: int
    start_s: float
    end_s: float


@dataclass(slots=True)
class Settings:
    """What the trainer of every rank has in common."""

    sizes: Sequence[Sizes]
    diverge_at: Mapping[int, int] = field(default_factory=dict)
    """config_id to the step at which its loss is not finite."""
    checked: bool = True
    pause: Callable[[int, int, int, int], None] = lambda config_id, epoch, shard, rank: None


def content(seed: bytes, size: int) -> bytes:
    """Return bytes that only who knows `seed` can make."""
    return hashlib.shake_256(seed).digest(size)


def initial(config_id: int, sizes: Sizes) -> tuple[bytes, bytes]:
    seed = f"config {config_id}".encode()
    return content(seed + b"a", sizes.arena), content(seed + b"r", sizes.rest)


def trained(state: tuple[bytes, bytes], epoch: int, shard: int) -> tuple[bytes, bytes]:
    """Return a state after a visit: every byte depends on every byte before, and on the visit."""
    whole = hashlib.sha256(state[0]).digest() + hashlib.sha256(state[1]).digest()
    seed = whole + f"{epoch} {shard}".encode()
    return content(seed + b"a", len(state[0])), content(seed + b"r", len(state[1]))


def sequential(config_id: int, sizes: Sizes, route: Sequence[tuple[int, int]]) -> str:
    """Return the digest of a config after its route in one place."""
    state = initial(config_id, sizes)
    for epoch, shard in route:
        state = trained(state, epoch, shard)
    return digest_of(*state)


def digest_of(arena: bytes, rest: bytes) -> str:
    return hashlib.sha256(arena + b"|" + rest).hexdigest()


class HashTrainer:
    """A rank's trainer; a config's state is bytes that tell its whole route."""

    def __init__(self, settings: Settings, plan: Plan, rank: int) -> None:
        self.settings = settings
        self.rank = rank
        self.visits: list[Visited] = []
        self.steps = {(v.config_id, v.epoch, v.shard): v.step for v in plan.visits()}

    def nbytes(self, config_id: int, step: int) -> int:
        return self.settings.sizes[config_id].arena

    def learn(self, news: Sequence[Mapping[str, Any]]) -> None:
        assert not news

    def turn_to(self, config_id: int, step: int) -> None:
        pass

    def knows(self, config_id: int) -> bool:
        return True

    def lay_out(self, config_id: int, rows: Any) -> dict[str, Any]:
        raise AssertionError("all configs are known")

    def check_change(self, config_id: int, step: int) -> None:
        pass

    def is_copy(self, config_id: int, step: int) -> bool:
        return False

    def change(self, session: HashSession, config_id: int, step: int) -> None:
        pass

    def allocate(self, nbytes: int) -> Arena:
        return np.full(nbytes, 0xEE, dtype=np.uint8)

    def start(self, config_id: int, arena: Arena) -> HashSession:
        first, rest = initial(config_id, self.settings.sizes[config_id])
        arena[:] = np.frombuffer(first, dtype=np.uint8)
        return HashSession(self, config_id, arena, rest)

    def draft(self, config_id: int, arena: Arena) -> int:
        return arena.ctypes.data

    waited_s = 0.0

    def ahead(self, config_id: int, step: int, arena: Arena, held: HashHeld | None) -> None:
        if held is not None:
            assert held.arena is arena

    def forget(self, arena: Arena) -> None:
        pass

    def resume(
        self,
        config_id: int,
        arena: Arena,
        rest: bytes,
        draft: int | None = None,
        held: HashHeld | None = None,
    ) -> HashSession:
        assert draft in (None, arena.ctypes.data)
        if held is not None:
            held.wait()
        return HashSession(self, config_id, arena, rest)

    def digest(self, config_id: int, arena: Arena, rest: bytes, held: HashHeld) -> str:
        held.wait()
        return digest_of(arena.tobytes(), rest)

    def state_copy(
        self, config_id: int, arena: Arena, rest: bytes, held: HashHeld, cursor: Any
    ) -> HashCopy:
        held.wait()
        return HashCopy(arena.tobytes(), rest)

    def load(
        self, config_id: int, manifest: Path, arena: Arena, whose: int
    ) -> tuple[bytes, Any, Any]:
        raise AssertionError("nothing is resumed")


class HashHeld:
    """A state that is in its arena at once, after some looks, or sent from elsewhere."""

    def __init__(self, arena: Arena, number: int) -> None:
        self.arena = arena
        self._bytes: Arena | None = arena.copy()
        self._looks = number % 4
        self._is_direct = number % 3 == 0
        arena[:] = 0xDD

    def land(self) -> None:
        self.test()

    def test(self) -> bool:
        self._looks -= 1
        if self._looks < 0 and self._bytes is not None:
            self.arena[:] = self._bytes
            self._bytes = None
        return self._bytes is None

    def wait(self) -> None:
        while not self.test():
            pass

    def direct(self) -> Arena | None:
        return self._bytes if self._is_direct else None

    def drop(self) -> None:
        self._bytes = None


@dataclass(frozen=True, slots=True)
class HashCopy:
    """A state that is written for the case that the run is cut off."""

    arena: bytes
    rest: bytes

    @property
    def nbytes(self) -> int:
        return len(self.arena) + len(self.rest)

    def manifest(self, folder: Path, step: int) -> Path:
        return folder / f"{stem_of(step)}.json"

    def write(self, folder: Path, step: int, facts: Any = None) -> int:
        folder.mkdir(parents=True, exist_ok=True)
        path = self.manifest(folder, step)
        path.with_suffix(".safetensors").write_bytes(self.arena)
        path.write_text(json.dumps({"digest": digest_of(self.arena, self.rest), "facts": facts}))
        return self.nbytes


@dataclass(slots=True)
class HashSession:
    """A session whose learning is to hash."""

    trainer: HashTrainer
    config_id: int
    arena: Arena
    rest: bytes
    is_released: bool = False
    notes: list[float] = field(default_factory=list)

    def train(
        self, epoch: int, shard: int, rows: Any, *, should_stop: Any = None, cursor: Any = None
    ) -> Outcome:
        assert not should_stop()
        assert cursor is None
        trainer, settings = self.trainer, self.trainer.settings
        assert rows == f"shard {shard}"
        visited = Visited(self.config_id, epoch, shard, trainer.rank, time.perf_counter(), 0.0)
        settings.pause(self.config_id, epoch, shard, trainer.rank)
        first, self.rest = trained((self.arena.tobytes(), self.rest), epoch, shard)
        self.arena[:] = np.frombuffer(first, dtype=np.uint8)
        visited.end_s = time.perf_counter()
        trainer.visits.append(visited)
        step = trainer.steps[self.config_id, epoch, shard]
        return Outcome(1, 0.5, settings.diverge_at.get(self.config_id) == step)

    def evaluate(self, epoch: int, rows: Any) -> dict[str, float]:
        assert rows == "valid"
        return {"train_loss": 0.5, "seconds": 0.0, "valid_loss": float(epoch)}

    def release(self) -> tuple[bytes, HashHeld]:
        self.is_released = True
        return self.rest, HashHeld(self.arena, len(self.trainer.visits))

    def snapshot(self) -> HashWeights:
        assert not self.is_released, "a device's memory may have another state by then"
        return HashWeights(self.arena.tobytes())


@dataclass(frozen=True, slots=True)
class HashWeights:
    raw: bytes

    def write(self, path: Path) -> int:
        return path.write_bytes(self.raw)


@dataclass(slots=True)
class Walked:
    """What one rank did."""

    visits: list[Visited]
    records: list[dict[str, Any]]
    events: list[dict[str, Any]]
    most_arenas: int
    arenas_kept: int
    """Buffers that were still lent at the end."""


def configs_of(plan: Plan) -> tuple[Config, ...]:
    return tuple(Config(i, {"a": i}, f"c{i:03d}") for i in range(plan.num_configs))


def in_parts(plan: Plan, seed: int) -> list[list[Orders]]:
    """Return what each rank is told, part by part, as if the plan were renewed on the way.

    Parts begin and end anywhere, so that many configs have nowhere to go for a while.
    """
    rng = random.Random(seed)
    place, made, ready = [0] * plan.num_ranks, [0] * plan.num_configs, []
    while len(ready) < plan.num_visits:
        able = [
            rank
            for rank, own in enumerate(plan.visits_by_rank)
            if place[rank] < len(own) and own[place[rank]].step == made[own[place[rank]].config_id]
        ]
        rank = rng.choice(able)
        visit = plan.visits_by_rank[rank][place[rank]]
        ready.append(visit)
        place[rank] += 1
        made[visit.config_id] += 1
    promises = Promises(plan.num_configs, plan.num_ranks, plan.num_steps)
    told: list[list[Orders]] = [[] for _ in range(plan.num_ranks)]
    while ready:
        size = rng.randint(1, max(1, plan.num_visits // 3))
        part, ready = ready[:size], ready[size:]
        for rank, orders in enumerate(promises.extend(part, plan.max_arenas, is_last=not ready)):
            told[rank].append(Orders.from_json(json.loads(json.dumps(orders.to_json()))))
    return told


class Unasked:
    """Nobody asks the run to stop."""

    is_asked = False


def walk(
    transport: Transport,
    plan: Plan,
    settings: Settings,
    folder: Path,
    lookahead: int = 3,
    parts: Sequence[Orders] | None = None,
) -> Walked:
    """Make one rank's visits, as a run does; `parts` of its list are told one after the other."""
    rank = transport.rank
    run = RunFolder(folder)
    run.make()
    trainer = HashTrainer(settings, plan, rank)
    events = EventLog(run.events(rank), rank, 0.0)
    records: list[dict[str, Any]] = []
    later = list(parts or [])

    writer = Writer(events, logging.getLogger("mophpc.test"))

    def check() -> None:
        if later:
            carrier.tell(later.pop(0))

    carrier = Carrier(
        transport,
        nbytes=trainer.nbytes,
        allocate=trainer.allocate,
        lookahead=lookahead,
        checked=settings.checked,
        events=events,
        check=check,
    )

    def step() -> bool:
        carrier.advance()
        return carrier.flows

    progress = Progress(step, threaded=transport.threaded)
    if parts is None:
        carrier.tell(whole(plan, rank))
    equipment = Equipment(
        configs=list(configs_of(plan)),
        shards={shard: f"shard {shard}" for shard in plan.shards_of(rank)},  # type: ignore[misc]
        valid="valid",  # type: ignore[arg-type]
        num_shards=plan.num_shards,
        trainer=trainer,
        keeper=Keeper(run, Checkpoints(), Objective(), writer),
        states=StateKeeper(run, Checkpoints(), writer),
        events=events,
        report=records.append,
        turn=nullcontext(),
        log=logging.getLogger("mophpc.test"),
        progress=progress,
        halt=Unasked(),  # type: ignore[arg-type]
    )
    try:
        RankProgram(carrier, equipment, Place(rank, transport.size, "here")).run()
    finally:
        progress.end()
        writer.close()
    events.close()
    lent = len(carrier.pool._lent)
    return Walked(trainer.visits, records, read_lines(run.events(rank)), carrier.pool.most, lent)


def walk_in_threads(
    plan: Plan,
    settings: Settings,
    folder: Path,
    lookahead: int = 3,
    parts: Sequence[Sequence[Orders]] | None = None,
) -> list[Walked]:
    """Walk all ranks of a plan at once.

    Raises:
        AssertionError: a rank did not end.
    """
    world = LocalWorld(plan.num_ranks)
    outcomes: list[Any] = [None] * plan.num_ranks

    def run(rank: int) -> None:
        try:
            transport = LocalTransport(world, rank)
            own = None if parts is None else parts[rank]
            outcomes[rank] = walk(transport, plan, settings, folder, lookahead, own)
        except Exception as error:
            outcomes[rank] = error
            world.failed = True

    ranks = range(plan.num_ranks)
    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in ranks]
    for thread in threads:
        thread.start()
    for rank, thread in enumerate(threads):
        thread.join(LIMIT_S)
        assert not thread.is_alive(), f"rank {rank} does not end"
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    for error in sorted(errors, key=lambda e: type(e).__name__ == "PeerError"):
        raise error
    return outcomes


def uneven(seed: int, longest_s: float) -> Callable[[int, int, int, int], None]:
    """Return a pause of another length for every visit; one rank in four is slow."""

    def pause(config_id: int, epoch: int, shard: int, rank: int) -> None:
        rng = random.Random(f"{seed} {config_id} {epoch} {shard}")
        time.sleep(rng.random() ** 3 * longest_s * (4 if rank % 4 == seed % 4 else 1))

    return pause
