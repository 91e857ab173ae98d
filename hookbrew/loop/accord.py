"""What the processes of a training agree on: a signal, or a callback's request, may have reached only one of them.

They would wait for each other for ever if one evaluated, saved or stopped alone. So all ask, after every step and
wherever a callback may have asked for something, and only what was agreed on is done.
"""

from __future__ import annotations

import attrs

from hookbrew.loop.state import State


@attrs.define
class Accord:
    """What all processes do next; of a process alone, what it was asked to."""

    evaluate: bool = False
    save: bool = False
    end: str | None = None
    """The signal that ends the training after a checkpoint."""

    def settle(self, state: State) -> None:
        """Ask all; a request to stop holds for all of them, in the words of the first that has some."""
        stop, self.end = state.stop_reason, state.interrupted
        if state.ranks.size == 1:
            self.evaluate, self.save = state.eval_requested, state.save_requested
            return
        asked = state.eval_requested, state.save_requested, stop is not None, self.end is not None
        evaluate, save, *ends = state.ranks.most([*map(int, asked)])
        self.evaluate, self.save = bool(evaluate), bool(save)
        if any(ends):
            stops, signals = zip(*state.ranks.each((stop, self.end)), strict=True)
            state.stop_reason = next((reason for reason in stops if reason is not None), None)
            self.end = next((name for name in signals if name is not None), None)
