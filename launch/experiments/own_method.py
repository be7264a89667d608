"""A method of one's own: the worst half of the configs is dropped after every epoch.

An experiment names it with `search.method = "own_method.py:WorstHalf"`. It is made once, on rank 0,
from one `Brief`; then it is asked for configs, and told what became of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mophpc.search import Brief, Continue, Decision, Result, Start, Stop

if TYPE_CHECKING:
    from collections.abc import Sequence


class WorstHalf:
    """Trains all configs for an epoch, the better half for another one, and so on."""

    def __init__(self, brief: Brief) -> None:
        """Take what the experiment says: its space, its epochs and `search.options`."""
        self.brief = brief
        self.count = brief.options.get("configs", 16)
        self.epochs = 0  # that those which wait have made
        self.training: set[int] = set()
        self.scores: dict[int, float] = {}  # of those that wait

    def ask(self, room: int) -> Sequence[Start]:  # noqa: ARG002 - all are needed, to be compared
        """Return new configs: all at the first call, and none later."""
        rows = self.brief.draw(self.count)
        self.count = 0
        # A config's id is the number of configs that were started before it.
        self.training |= set(range(len(rows)))
        return [Start(row, epochs=1, then=self.brief.epochs - 1) for row in rows]

    def tell(self, result: Result) -> Sequence[Decision]:
        """Take a result; when the last one of an epoch has come, decide on all that wait.

        A score is the experiment's objective, turned so that less is better.
        """
        self.training.discard(result.config_id)
        self.scores.pop(result.config_id, None)
        if not result.is_over:  # else it has made all epochs, has diverged, or somebody stopped it
            self.scores[result.config_id] = result.score
            self.epochs = result.epochs
        if self.training:
            return []  # its state waits where it is, while the ranks train the others
        ranked = sorted(self.scores, key=lambda config_id: (self.scores[config_id], config_id))
        self.scores = {}
        half = (len(ranked) + 1) // 2
        self.training = set(ranked[:half])
        following = self.epochs + 1
        left = self.brief.epochs - following
        return [
            *(Continue(config_id, following, then=left) for config_id in ranked[:half]),
            *(Stop(config_id) for config_id in ranked[half:]),
        ]
