"""What a rank is to do next, and which configs' states it holds for that: how they come and go.

Arenas are taken by the rule of `mophpc.schedule.walk`, which rank 0 has walked through before it
told the ranks: so what happens here cannot deadlock, whatever the timing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mophpc.errors import HopError, UnreachableError
from mophpc.events import EventLog
from mophpc.hop.parcel import Incoming, Outgoing, Parcel
from mophpc.hop.transport import Buffer, Check, Transport, wait_until
from mophpc.run.rank.arenas import ArenaPool
from mophpc.schedule.orders import DROP, END, Link, Orders, StateCopy
from mophpc.schedule.plan import Hop, Stop
from mophpc.schedule.walk import ArenaQueue

LANDING_S = 1e-4
"""Between two looks at a state on its way from a device."""


def _has_landed(parcel: Parcel) -> bool:
    return parcel.held is None or parcel.diverged or parcel.held.test()


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A hop that has ended here; times are of the events."""

    parcel: Parcel
    incoming: Incoming
    posted_s: float
    begun_s: float
    end_s: float


class Carrier:
    """Receives ahead, keeps and sends the states of one rank."""

    def __init__(
        self,
        transport: Transport,
        *,
        nbytes: Callable[[int, int], int],
        allocate: Callable[[int], Buffer],
        lookahead: int,
        checked: bool,
        events: EventLog,
        check: Check,
    ) -> None:
        self.is_stopping: Callable[[], bool] = lambda: False
        """Says whether the rank was asked to stop, so that it waits for nothing more."""
        self._stops: list[Stop] = []
        self._told_all = False
        self._transport = transport
        self._nbytes = nbytes
        self._checked = checked
        self._events = events
        self._check = check
        self.exposed_s = 0.0
        """Seconds that this rank had nothing to train while a state was on its way to it."""
        self.pool = ArenaPool(allocate)
        self._queue = ArenaQueue([], 0, lookahead)
        self._reserved: dict[int, Buffer] = {}
        self._incoming: dict[int, tuple[Incoming, float]] = {}
        self._arrived: dict[int, _Arrival] = {}
        self._fetched: set[int] = set()  # received out of their turn, since the run stops
        self._kept: dict[int, Parcel] = {}
        self._undecided: dict[int, Parcel] = {}  # their next place has not been told yet
        self._copies: dict[tuple[int, int], list[StateCopy]] = {}  # by (source, step): to be made
        self.acknowledge: Callable[[int, int, int], None] | None = None
        """Where others go on when a rank dies, states that have left are kept until another rank
        keeps a newer one; this tells a rank of it: its number, config and visit."""
        self._came: dict[int, tuple[int, int]] = {}  # by config_id: from whom, for which visit
        self._retained: dict[int, Parcel] = {}
        self._early: dict[int, int] = {}  # (config, visit) that was made before its hop was over
        self._ended: deque[Parcel] = deque()
        self._retiring: deque[tuple[int, int]] = deque()  # (config, step) that end, in their files
        self._dests: dict[tuple[int, int], int] = {}  # (config, step): told before the visit ended
        self._gone: dict[tuple[int, int], int] = {}  # likewise, of states that go nowhere
        self._landing: list[tuple[Parcel, Hop]] = []  # not in their arenas yet
        self._outgoing: list[tuple[Outgoing, Hop, float]] = []

    def tell(self, orders: Orders) -> None:
        """Take the next part of the rank's list, and where configs go that were undecided."""
        begin = len(self._stops)
        self._stops += orders.stops
        needs = [begin + i for i, stop in enumerate(orders.stops) if stop.takes_arena]
        self._queue.extend(needs, orders.max_arenas)
        self._told_all = orders.is_last
        made = [parcel for copy in orders.copies for parcel in self._copy_now(copy)]
        # What ends comes first: a copy may take the place of its config's own state.
        for link in sorted(orders.links, key=lambda link: link.dest >= 0):
            if link.dest >= 0 and made:
                self._undecided |= {parcel.config_id: parcel for parcel in made}
                made = []
            self._follow(link)
        self._undecided |= {parcel.config_id: parcel for parcel in made}

    def _follow(self, link: Link) -> None:
        """Let a state go where a link says."""
        parcel = self._undecided.get(link.config_id)
        if parcel is None or parcel.step != link.step:
            later = self._dests if link.dest >= 0 else self._gone
            later[link.config_id, link.step] = link.dest
        else:
            del self._undecided[link.config_id]
            self._go(parcel, link.dest)

    def _copy_now(self, copy: StateCopy) -> list[Parcel]:
        """Copy a state that is here; remember a copy that is to be made later."""
        source = self._undecided.get(copy.source)
        if source is not None and source.step == copy.step:
            return [self._copy(source, copy)]
        self._copies.setdefault((copy.source, copy.step), []).append(copy)
        return []

    def _copy(self, source: Parcel, copy: StateCopy) -> Parcel:
        start_s = self._events.now()
        while not _has_landed(source):  # a device's copy to this memory, begun already
            time.sleep(LANDING_S)
        self._queue.hold()
        arena = self.pool.take(len(source.arena))
        arena[:] = source.arena
        self._events.write(
            "copy",
            start_s,
            self._events.now(),
            config=copy.config_id,
            source=copy.source,
            step=copy.step,
            nbytes=len(arena),
        )
        return Parcel(copy.config_id, copy.step, arena, source.rest, source.diverged)

    def next_stop(self, position: int) -> Stop | None:
        """Return the stop at a place in the list; wait until it is told.

        None after the last, or where a config has ended here meanwhile.
        """
        if position < len(self._stops):
            return self._stops[position]
        if self._told_all or self._any_ends or self.is_stopping():
            return None
        start_s = self._events.now()
        wait_until(lambda: self._is_told(position), self._check)
        self._events.write("told", start_s, self._events.now())
        return self._stops[position] if position < len(self._stops) else None

    def is_over(self, position: int) -> bool:
        """Whether all visits of the list are made and nothing more will be told."""
        return self._told_all and position == len(self._stops) and not self._any_ends

    @property
    def _any_ends(self) -> bool:
        return bool(self._ended or self._retiring)

    def retire(self, config_id: int, step: int) -> None:
        """Let a config end here whose state is in a file."""
        self._retiring.append((config_id, step))

    def take_ended(self) -> tuple[Parcel, bool] | None:
        """Return a state whose config ends here, and whether it must be read from its file.

        It is to be let go of by `free`.
        """
        if self._ended:
            return self._ended.popleft(), False
        if not self._retiring:
            return None
        config_id, step = self._retiring.popleft()
        self._queue.hold()
        return Parcel(config_id, step, self.pool.take(self._nbytes(config_id, step))), True

    def take_all(self, *, receives: bool = True) -> tuple[list[Parcel], list[Parcel]]:
        """Return the states that are here and trained by nobody, and those that are leaving.

        The former are to be let go of by `free`; the latter must not change.

        Args:
            receives: whether messages still progress.
        """
        if receives:
            self.advance()
        here = [*self._kept.values(), *self._undecided.values()]
        here += [arrival.parcel for arrival in self._arrived.values()]
        here += [parcel for parcel, _ in self._landing]
        for position in self._arrived:
            if position not in self._fetched:
                self._queue.start()
        self._kept, self._undecided, self._arrived, self._landing = {}, {}, {}, []
        leaving = [outgoing.parcel for outgoing, _, _ in self._outgoing]
        return here, [*leaving, *self._retained.values()]

    def let_go(self, config_id: int, step: int) -> None:
        """Let go of a state that was kept for the case that the rank it went to dies."""
        kept = self._retained.get(config_id)
        if kept is not None and kept.step <= step:
            self._discard(self._retained.pop(config_id))
        elif kept is None:
            self._early[config_id] = step

    def _discard(self, parcel: Parcel) -> None:
        if parcel.held is not None:
            parcel.held.drop()
        self.pool.give_back(parcel.arena)

    def _is_safe(self, config_id: int) -> None:
        """Say that the state with which a config came needs to be kept nowhere any more."""
        came = self._came.pop(config_id, None)
        if came is not None and self.acknowledge is not None:
            self.acknowledge(came[0], config_id, came[1])

    def cancel(self) -> bool:
        """Expect no state any more; return whether none is leaving."""
        for incoming, _ in self._incoming.values():
            incoming.cancel()
        self._incoming = {}
        return self._nothing_leaves()

    def fetch(self, config_id: int, step: int) -> bool:
        """Receive a state that may have left its last rank, though it is not its turn.

        Returns:
            Whether there is nothing more to do for it here.
        """
        for position in range(len(self._stops) - 1, -1, -1):
            stop = self._stops[position]
            if (stop.visit.config_id, stop.visit.step) == (config_id, step):
                if stop.receive is not None and position not in self._incoming:
                    self._queue.hold()
                    self._fetched.add(position)
                    self._post(position, self.pool.take(self._nbytes(config_id, step)))
                return True
        return self._told_all

    def resize(self, parcel: Parcel) -> None:
        """Give a new state the memory that it needs, once that is known."""
        nbytes = self._nbytes(parcel.config_id, parcel.step)
        if len(parcel.arena) != nbytes:
            self.pool.give_back(parcel.arena)
            parcel.arena = self.pool.take(nbytes)

    def pass_on(self, stop: Stop, parcel: Parcel) -> None:
        """After a visit, send the state on, keep it, or let it go."""
        for copy in self._copies.pop((parcel.config_id, parcel.step), ()):
            made = self._copy(parcel, copy)
            self._undecided[made.config_id] = made
            if (dest := self._dests.pop((made.config_id, made.step), None)) is not None:
                self._follow(Link(made.config_id, made.step, dest))
        if stop.is_last or stop.is_dropped:
            self.free(parcel)
        elif not stop.is_open:
            self._go(parcel, stop.visit.rank if stop.send is None else stop.send.dest)
        elif (gone := self._gone.pop((parcel.config_id, parcel.step), None)) is not None:
            self._go(parcel, gone)
        elif (dest := self._dests.pop((parcel.config_id, parcel.step), None)) is not None:
            self._go(parcel, dest)
        else:
            self._undecided[parcel.config_id] = parcel
            if parcel.held is not None:
                parcel.held.land()

    def advance(self) -> None:
        """Let hops progress, free what has left, and post receives ahead."""
        for index in reversed(range(len(self._landing))):
            if _has_landed(self._landing[index][0]):
                self._send(*self._landing.pop(index))
        for leaving in list(self._outgoing):
            outgoing, hop, start_s = leaving
            if outgoing.test():
                self._outgoing.remove(leaving)
                self._let_leave(outgoing.parcel)
                self._record("send", hop, (start_s, self._events.now()), outgoing)
        for position in list(self._incoming):
            incoming, start_s = self._incoming[position]
            if incoming.test():
                del self._incoming[position]
                self._arrived[position] = self._arrival(position, incoming, start_s)
        while (taken := self._queue.take()) is not None:
            stop = self._stops[taken]
            arena = self.pool.take(self._nbytes(stop.visit.config_id, stop.visit.step))
            if stop.receive is None:
                self._reserved[taken] = arena
            elif taken not in self._fetched:
                self._post(taken, arena)

    def _post(self, position: int, arena: Buffer) -> None:
        hop = self._hop_to(position)
        incoming = Incoming(self._transport, arena, hop.source, hop.tag)
        self._incoming[position] = (incoming, self._events.now())

    def _let_leave(self, parcel: Parcel) -> None:
        """Free what has left; or keep it until another rank keeps a newer state."""
        if (
            self.acknowledge is None
            or parcel.diverged
            or self._early.pop(parcel.config_id, -1) >= parcel.step
        ):
            self.free(parcel)
            return
        former = self._retained.pop(parcel.config_id, None)
        if former is not None:
            self._discard(former)
        if parcel.held is not None:  # a device's memory is not for what may never be needed
            while not _has_landed(parcel):
                time.sleep(LANDING_S)
            parcel.held.drop()
            parcel.held = None
        self._retained[parcel.config_id] = parcel
        self._queue.release()  # it is beyond what the plan counts
        self._is_safe(parcel.config_id)

    def next_up(self, position: int) -> Parcel | None:
        """Return the state for a visit that is still to come, if it is here and will be trained."""
        if position >= len(self._stops):
            return None
        stop = self._stops[position]
        found: Parcel | None
        if stop.takes_arena:
            arrival = self._arrived.get(position)
            found = None if arrival is None else arrival.parcel
        else:
            found = self._kept.get(stop.visit.config_id)
        return None if found is None or found.diverged else found

    def awaited(self, position: int) -> Buffer | None:
        """Return the arena that a visit's state is on its way to; None where it is here."""
        stop = self._stops[position]
        self.advance()
        if not stop.takes_arena or stop.receive is None or self._is_here(position):
            return None
        found = self._incoming.get(position)
        return None if found is None else found[0].arena

    @property
    def flows(self) -> bool:
        """Whether bytes of any hop were moving just now."""
        coming = any(incoming.flows for incoming, _ in self._incoming.values())
        return coming or any(outgoing.flows for outgoing, _, _ in self._outgoing)

    def obtain(self, position: int, wanted_s: float) -> Parcel | None:
        """Return the state for a visit; wait until it is here.

        None where a config has ended here meanwhile: its memory may be what is waited for.

        Args:
            position: of the visit in the rank's list.
            wanted_s: when the rank had nothing else to do, on the clock of the events.
        """
        visit = self._stops[position].visit
        if not self._stops[position].takes_arena:
            return self._kept.pop(visit.config_id)
        with self._events.timed("wait", config=visit.config_id, step=visit.step) as facts:
            before_s = time.process_time()
            wait_until(lambda: self._may_go_on(position), self._check, lambda: self.flows)
            facts["cpu_s"] = time.process_time() - before_s
        if not self._is_here(position):
            return None
        self._queue.start()
        if position in self._reserved:
            return Parcel(visit.config_id, visit.step, self._reserved.pop(position))
        arrival = self._arrived.pop(position)
        self._came[visit.config_id] = (arrival.incoming.source, visit.step)
        exposed_s = max(0.0, arrival.end_s - max(wanted_s, arrival.begun_s))
        self.exposed_s += exposed_s
        self._record(
            "receive",
            self._hop_to(position),
            (arrival.posted_s, arrival.end_s),
            arrival.incoming,
            transfer_s=arrival.end_s - arrival.begun_s,
            exposed_s=exposed_s,
            hidden=exposed_s == 0.0,
        )
        return arrival.parcel

    def _go(self, parcel: Parcel, dest: int) -> None:
        """Keep a state for a later visit here, start to send it, or let it end."""
        held = parcel.held
        if dest == END:
            self._ended.append(parcel)
            return
        if dest == DROP:
            self.free(parcel)
            return
        if dest == self._transport.rank:
            self._kept[parcel.config_id] = parcel
            if held is not None:
                held.land()
            return
        hop = Hop(parcel.config_id, parcel.step, self._transport.rank, dest)
        direct = None
        if held is not None and not self._checked and not parcel.diverged:
            direct = held.direct()
        if direct is not None or _has_landed(parcel):
            self._send(parcel, hop, direct)
        else:
            self._landing.append((parcel, hop))

    def _send(self, parcel: Parcel, hop: Hop, direct: Any = None) -> None:
        try:
            outgoing = Outgoing(
                self._transport, parcel, hop.dest, hop.tag, checked=self._checked, direct=direct
            )
        except UnreachableError:  # it stays here, to be written
            self._kept[parcel.config_id] = parcel
            raise
        self._outgoing.append((outgoing, hop, self._events.now()))

    def _is_told(self, position: int) -> bool:
        self.advance()
        is_known = self._told_all or position < len(self._stops)
        return is_known or self._any_ends or self.is_stopping()

    def drain(self) -> None:
        """Wait until all states have left."""
        wait_until(self._nothing_leaves, self._check, lambda: self.flows)

    def _may_go_on(self, position: int) -> bool:
        self.advance()
        return self._any_ends or self._is_here(position) or self.is_stopping()

    def _is_here(self, position: int) -> bool:
        return position in self._reserved or position in self._arrived

    def _nothing_leaves(self) -> bool:
        self.advance()
        return not self._outgoing and not self._landing

    def free(self, parcel: Parcel) -> None:
        """Let go of a state."""
        self._discard(parcel)
        self._queue.release()
        self._is_safe(parcel.config_id)

    def _hop_to(self, position: int) -> Hop:
        hop = self._stops[position].receive
        if hop is None:
            raise HopError(f"visit {position} of the rank expects no hop")
        return hop

    def _arrival(self, position: int, incoming: Incoming, posted_s: float) -> _Arrival:
        hop = self._hop_to(position)
        parcel = incoming.parcel(hop.config_id, hop.step)
        end_s = self._events.now()
        took_s = 0.0 if incoming.begun_s is None else time.perf_counter() - incoming.begun_s
        return _Arrival(parcel, incoming, posted_s, end_s - took_s, end_s)

    def _record(
        self,
        direction: str,
        hop: Hop,
        span: tuple[float, float],
        end: Outgoing | Incoming,
        **facts: Any,
    ) -> None:
        self._events.write(
            "hop",
            *span,
            direction=direction,
            config=hop.config_id,
            step=hop.step,
            source=hop.source,
            dest=hop.dest,
            nbytes=end.nbytes,
            header_nbytes=end.header_nbytes,
            **facts,
        )
