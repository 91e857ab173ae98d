"""The events of a run, and the loop that fires them.

A callback is an object whose public methods are named for events; each takes exactly one argument, the
`State`. This is the loop, with its events on the right:

    everything is attached: paths resolved, shapes measured, signatures checked
                                                                        | run_start
    if the run goes on from a checkpoint, all of it restored:           | resumed
    for epoch in 1 .. epochs:                                           | epoch_start
        for group in batches of the epoch, `accumulate` at a time:
            state.step += 1; learning rate of this step                 | step_start
            counts = valid positions of the whole group, per loss
            for batch in group:
                augment, move to the device                             | batch_ready
                teacher forward (no gradient), student forward          | forward_end
                loss = sum over losses: weight * sum / count            | loss_end
                loss.backward()                                         | backward_end
            clip the norm of all trained gradients                      | grads_ready
            optimizer step, unless a gradient is not finite             | optimizer_end
                                                                        | step_end
            if a row of metrics is due: state.record                    | log
            if an evaluation is due, or was requested:                  | eval_start
                for batch of the evaluation data: forward               | eval_batch_end
                                                                        | eval_end
            if a checkpoint was requested: it is made                   | checkpoint_saving
                                               or checkpoint_failed     | checkpoint_saved
                                                                        | epoch_end
                                                                        | run_end
    an exception, Ctrl-C included: state.exception                      | run_abort
    always, last                                                        | close

The edits of `[[surgery]]` are made when models are built, before there are callbacks: every event sees models that
were edited.

Checkpoints go into `state.store`, which the callback `checkpoint` sets; a callback that makes others announces them,
`state.announce("checkpoint_saving")`. They observe, or ask: `state.request_stop(reason)`, `state.request_eval()`,
`state.request_save()`.

Callbacks are called by their `priority`, a class variable or attribute, an integer, 0 without one: lower ones come
earlier, in every event, and those of one priority in the order of the configuration. `evaluate` has -100, for others
read what it counts; `metrics` 50, `tensorboard` and `maps` 80, `progress` 90, `checkpoint` 100.

What a callback raises ends the run, after `run_abort` and `close`. One that only watches may say `optional = True`, a
class variable or attribute: what it raises disables it, with one warning, and only its `close` is called any more;
`state.degraded`, and with it `status.json`, says which, where and why. What a user can mend (a HookbrewError) in
`run_start` ends the run all the same, and Ctrl-C always does. `tensorboard`, `progress` and `maps` are optional. One
that has a state cannot be.

A teacher that no loss compares with is refused, unless a callback says `teaches = True`, a class variable or attribute,
because it learns from the teacher in another way, as `theseus` does from its layers; such a teacher is not run.

A method may have filters, `@when(every=100)`, `@when(every_epoch=2)`, `@when(first=True)`, `@when(main=True)`, from
`hookbrew.plugin`; together, all must hold. They are decided by the state, so that a resumed run calls at the same
steps. `every` and `every_epoch` pick among the times an event comes: `log` with every=7 and `log_every` 10 is step 70.
The events of a run take `main` alone, but `run_start` takes `first`, where no step was made; `epoch_start` and
`epoch_end` do not take `every`, and those of a checkpoint do not take `first`.

A callback that remembers has `state_dict()` and
`load_state_dict(state)`, of plain values and tensors, which checkpoints keep; it is given its state before `run_start`.

Of several processes each has its own callbacks, which see the same steps, rows and metrics, and of each batch a part.
`state.ranks` sums and gathers over them; `state.ranks.main` is the one that writes files. What one of them asks for, as
`request_stop`, all do. Checkpoints keep what the first one's remember, and all are given that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from hookbrew.loop.state import State

event = pluggy.HookspecMarker("hookbrew")


class Events:
    """One hook specification per event. `step` is an optimizer update, `batch` one forward pass."""

    @event
    def run_start(self, state: State) -> None:
        """Everything is attached and checked; no step was made."""

    @event
    def resumed(self, state: State) -> None:
        """`state.step` and all else are as they were when the checkpoint was made; comes after `run_start`."""

    @event
    def epoch_start(self, state: State) -> None:
        """`state.epoch` was raised; it counts from 1."""

    @event
    def step_start(self, state: State) -> None:
        """`state.step` was raised; it counts from 1 and is the same in all events of one step."""

    @event
    def batch_ready(self, state: State) -> None:
        """`state.batch` is augmented and on the device."""

    @event
    def forward_end(self, state: State) -> None:
        """`state.student_out` and `state.teacher_out` hold what the models returned.

        A teacher that stopped early returned None; `train.stop_teacher = false` lets it go on. So did a student whose
        losses are computed in chunks; `train.chunked = false` lets it make its logits."""

    @event
    def loss_end(self, state: State) -> None:
        """`state.loss` is this batch's share of the step's loss, a tensor with its graph.

        What a callback adds to it is added for each batch of the step, and by each of several processes.
        """

    @event
    def backward_end(self, state: State) -> None:
        """The gradients of this batch have been added."""

    @event
    def grads_ready(self, state: State) -> None:
        """All gradients of the step are there and clipped; `state.grad_norm` is their norm before that."""

    @event
    def optimizer_end(self, state: State) -> None:
        """The parameters were updated."""

    @event
    def step_end(self, state: State) -> None:
        """The step is over and every counter is advanced."""

    @event
    def log(self, state: State) -> None:
        """Every `log_every` steps: `state.record` holds plain numbers, in this event only."""

    @event
    def eval_start(self, state: State) -> None:
        """The models are in evaluation mode; `state.metrics` is empty."""

    @event
    def eval_batch_end(self, state: State) -> None:
        """One batch of the evaluation data: `state.batch`, `state.logits`, `state.labels`."""

    @event
    def eval_end(self, state: State) -> None:
        """Put numbers into `state.metrics`; observers that come later in the order read them."""

    @event
    def epoch_end(self, state: State) -> None:
        """The last step of an epoch and its evaluation are over."""

    @event
    def checkpoint_saving(self, state: State) -> None:
        """A checkpoint is about to be written."""

    @event
    def checkpoint_saved(self, state: State) -> None:
        """A checkpoint stands complete on disk."""

    @event
    def checkpoint_failed(self, state: State) -> None:
        """A checkpoint could not be written."""

    @event
    def run_end(self, state: State) -> None:
        """The training is complete, or was stopped on request: `state.stop_reason`."""

    @event
    def run_abort(self, state: State) -> None:
        """The training ended by `state.exception`."""

    @event
    def close(self, state: State) -> None:
        """Always called, last: release files and displays."""


EVENTS: tuple[str, ...] = tuple(name for name, value in vars(Events).items() if callable(value))
"""The names of all events, in the order of the loop."""
