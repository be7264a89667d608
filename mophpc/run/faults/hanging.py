"""Finds ranks that hang: this one, its neighbours, and all together.

Nothing is asked of a minibatch but that it counts. A thread looks at the count; it cannot look
where user code holds Python's lock, so a timer of the interpreter, which needs no lock, writes the
stacks, and a neighbour sees that this rank shows no sign of life.
"""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from mophpc.errors import LostError
from mophpc.run.faults.loss import hangs, stalled
from mophpc.run.faults.places import OVER, RUNNING, VISIT, WAIT, Sign, Whereabouts, read_place
from mophpc.run.folder import RunFolder

_PARTS = 10.0
_LEAST_S, _MOST_S = 0.2, 1.0
_MOST_BEAT_S = 5.0
_STACK_S = 3.0
"""A busy host may take so long to write the stack of a rank that hangs."""
_SLEPT = 0.3
"""When nobody could look for this part of the limit, the process was suspended, as by Ctrl-Z."""


class Hanging:
    """Looks after this rank and its neighbours.

    Args:
        sign: of this rank.
        ranks: all of them.
        folder: of the run.
        hang_s: after so long without a minibatch a rank hangs.
    """

    def __init__(
        self, sign: Sign, ranks: Sequence[Whereabouts], folder: RunFolder, hang_s: float
    ) -> None:
        self.pause_s = min(_MOST_S, max(_LEAST_S, hang_s / _PARTS))
        """Between two looks at this rank; seconds, as all that ends in _s."""
        self._beat_s = min(_MOST_BEAT_S, max(_LEAST_S, hang_s / _PARTS))
        self._beaten_s = -self._beat_s
        self._sign = sign
        self._ranks = ranks
        self._folder = folder
        self._hang_s = sign.hang_s = hang_s
        self._neighbours = _neighbours(ranks, sign.own.rank)
        self._seen: dict[int, tuple[tuple[int, ...], float]] = {}  # by rank: signs, and since when
        self._news = (-1, 0.0)
        self._news_s = self._looked_s = time.monotonic()
        self._waits = 0
        self._still: tuple[int, ...] = ()
        self._still_s = 0.0
        self._log: IO[str] = folder.log(sign.own.rank).open("a")
        self._armed_s = 0.0
        """In so long, from when it was set, the timer writes stacks; 0: it does not."""
        self._limit_s = hang_s
        """When this rank was last looked at, of its visit."""
        self._lock = threading.Lock()
        sign.on_visit = self._shorten

    def close(self) -> None:
        """Look no more."""
        self._sign.on_visit = None
        self._disarm()
        self._log.close()

    def _arm(self, limit_s: float) -> None:
        self._armed_s = limit_s
        faulthandler.dump_traceback_later(limit_s, file=self._log)

    def _shorten(self, limit_s: float) -> None:
        """A visit begins: user code may take the lock in it before the next look.

        What was set in a visit with a config's first minibatch would be too late then.
        """
        with self._lock:
            if self._armed_s > limit_s:
                self._arm(limit_s)

    def _disarm(self) -> None:
        with self._lock:
            if self._armed_s > 0.0:
                faulthandler.cancel_dump_traceback_later()
                self._armed_s = 0.0

    def look(self) -> tuple[LostError, Whereabouts] | None:
        """Return what is to be said of a rank that hangs, and where it is."""
        now_s = time.monotonic()
        unseen_s = now_s - self._looked_s
        if unseen_s < 0.8 * self.pause_s:
            return None
        self._looked_s = now_s
        if unseen_s > _SLEPT * self._hang_s + self.pause_s:  # minibatches stood still as well
            self._news_s += unseen_s
        own = self._look_at_own(now_s)
        if own is not None or now_s - self._beaten_s < self._beat_s:
            return own
        slept_s, self._beaten_s = now_s - self._beaten_s, now_s
        self._beat()
        found = self._look_at_neighbours(now_s, slept_s)
        return found or self._look_at_all(now_s)

    def _look_at_own(self, now_s: float) -> tuple[LostError, Whereabouts] | None:
        sign = self._sign
        with self._lock:
            own, self._limit_s = sign.own, sign.limit_s
            news = (sign.batches, sign.changed_s)
            is_new, in_visit = news != self._news, own.doing == VISIT
            if is_new:
                self._news, self._news_s = news, now_s
            limit_s = self._limit_s if in_visit else self._hang_s
            if is_new or not in_visit:  # a visit may begin and take the lock before the next look
                self._arm(limit_s)
        if not in_visit or now_s - self._news_s < limit_s:
            return None
        self._disarm()
        faulthandler.dump_traceback(file=self._log)
        return self._named(own, now_s - self._news_s), own

    def _beat(self) -> None:
        """Let the others see that this rank can show something, and what."""
        doing, waits = self._sign.own.doing, self._sign.waits
        does_wait = waits != self._waits and doing == WAIT
        self._waits = waits
        judged = doing in (VISIT, OVER) or does_wait
        self._sign.beat(waits=does_wait, limit_s=self._limit_s if judged else 0.0)

    def _look_at_neighbours(
        self, now_s: float, slept_s: float
    ) -> tuple[LostError, Whereabouts] | None:
        for rank in self._neighbours:
            where = read_place(self._folder.path, rank)
            if where is None or where.state != RUNNING or where.pid != self._ranks[rank].pid:
                continue
            key = (where.beats, where.batches)
            before, since_s = self._seen.get(rank, ((), 0.0))
            # After a pause of this process, of all of them perhaps, none is to blame for it.
            if key != before or slept_s > 3.0 * self._beat_s:
                self._seen[rank] = (key, now_s)
            elif 0.0 < where.limit_s < now_s - since_s - 2.0 * self._beat_s:
                return self._named(where, now_s - since_s), where
        return None

    def _look_at_all(self, now_s: float) -> tuple[LostError, Whereabouts] | None:
        """Find out on rank 0 whether all wait, for nobody."""
        own = self._sign.own
        if own.rank != 0 or own.doing == VISIT or now_s - self._news_s < self._hang_s / 2:
            self._still = ()
            return None
        found = [read_place(self._folder.path, rank) for rank in range(len(self._ranks))]
        places = [where for where in found if where is not None]
        if len(places) < len(found) or not all(w.waits or w.doing == OVER for w in places):
            self._still = ()
            return None
        still = tuple(where.batches for where in places)
        if still != self._still:
            self._still, self._still_s = still, now_s
        elif now_s - self._still_s > self._hang_s:
            return stalled(places, now_s - self._news_s), own
        return None

    def _named(self, where: Whereabouts, seconds: float) -> LostError:
        log = self._folder.log(where.rank)
        patience_s = _STACK_S if where.rank != self._sign.own.rank else 0.0
        return hangs(where, seconds, log, _shown(log), patience_s=patience_s)


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _neighbours(ranks: Sequence[Whereabouts], rank: int) -> list[int]:
    """Return the next rank of the same host and, for a host's first rank, that of the next host.

    So each rank has one that looks at it, and nobody has to look at all.
    """
    hosts: dict[str, list[int]] = {}
    for where in ranks:
        hosts.setdefault(where.realm, []).append(where.rank)
    own = hosts[ranks[rank].realm]
    found = [own[(own.index(rank) + 1) % len(own)]]
    if rank == own[0]:
        firsts = [others[0] for others in hosts.values()]
        found.append(firsts[(firsts.index(rank) + 1) % len(firsts)])
    return [other for other in dict.fromkeys(found) if other != rank]
