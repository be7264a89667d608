"""What a method makes of some results: asked once, and written down as it was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mophpc.search.method import Continue, Copy, Decision, Method, Result, Start

Record = dict[str, Any]


@dataclass(slots=True)
class Thought:
    """What the method makes of some results."""

    decisions: list[Sequence[Decision]] = field(default_factory=list)
    """Of each result that something followed from."""
    calls: list[Record] = field(default_factory=list)
    """What it was told and asked, for the journal."""
    starts: Sequence[Start] = ()
    error: BaseException | None = None
    is_done: bool = False


def make_up(thought: Thought, method: Method, inbox: Sequence[Result], room: int) -> None:
    """Let the method think."""
    try:
        for result in inbox:
            call = {"tell": result.config_id, "epochs": result.epochs, "score": result.score}
            thought.calls.append(call | {"is_over": result.is_over})
            decisions = list(method.tell(result))
            if decisions:
                thought.decisions.append(decisions)
            room -= sum(isinstance(one, Continue | Copy) for one in decisions)
        if room > 0:
            thought.calls.append({"ask": room, "ids": []})
            thought.starts = list(method.ask(room))
    except BaseException as error:  # raised again by whoever takes it up
        thought.error = error
    thought.is_done = True
