"""What every loss does. `check_loss(KDCE(temperature=2.0))` checks it all.

First the thirteen properties that catch the bugs of published distillation code (agreement is two here:
the value and the gradient); then `tokens_as_samples`, which catches a softmax over dimension 1; then what
hookbrew's masks ask for, and what a resumed run asks of a loss that learns or remembers.
"""

from __future__ import annotations

import io

import torch
from torch import Tensor, nn

from hookbrew.testing.kit import Kit, law, require
from hookbrew.testing.trial import Inputs, Trial, trials


@law()
def scalar_and_finite(trial: Trial) -> None:
    """The loss is one finite number, a float tensor without dimensions."""
    value = trial.value(trial.inputs())
    require(isinstance(value, Tensor), f"it gives a {type(value).__name__}, no tensor ({trial})")
    require(value.shape == (), f"it gives {tuple(value.shape)}, no scalar ({trial})")
    require(value.is_floating_point() and bool(value.isfinite()), f"it gives {value.item()} ({trial})")


@law()
def student_gradient(trial: Trial) -> None:
    """A finite gradient that is not all zeros reaches the student."""
    gradient = trial.gradient(trial.inputs())
    require(bool(gradient.isfinite().all()), f"the gradient is not finite ({trial})")
    require(bool(gradient.any()), f"no gradient reaches the student ({trial})")


@law("teacher")
def teacher_detached(trial: Trial) -> None:
    """No gradient reaches the teacher."""
    inputs = trial.inputs()
    leaves = [inputs[side].requires_grad_() for side in ("student", "teacher")]
    value = trial.value(inputs)
    require(value.requires_grad, f"it has no graph ({trial})")
    gradient = torch.autograd.grad(value.sum(), leaves, allow_unused=True)[1]
    require(gradient is None, f"a gradient reaches the teacher; detach it ({trial})")


@law("teacher")
def zero_at_agreement(trial: Trial) -> None:
    """The loss is 0 where student and teacher are equal."""
    inputs = trial.inputs()
    value = trial.value({**inputs, "teacher": inputs["student"].clone()})
    require(bool((value.abs() < 1e-5).all()), f"student == teacher gives {read(value)} ({trial})")


@law("teacher")
def flat_at_agreement(trial: Trial) -> None:
    """The gradient is 0 where student and teacher are equal."""
    inputs = trial.inputs()
    size = trial.gradient({**inputs, "teacher": inputs["student"].clone()}).norm().item()
    require(size < 1e-5, f"student == teacher has a gradient of norm {size:.3g} ({trial})")


@law()
def mean_over_batch(trial: Trial) -> None:
    """The same samples twice give the same loss."""
    inputs = trial.inputs()
    require_equal(trial, inputs, {role: torch.cat([x, x]) for role, x in inputs.items()}, "doubling the batch")


@law()
def micro_batches(trial: Trial) -> None:
    """The losses of the parts of a batch, weighed by what each of them counts, are the loss of the whole."""
    inputs = trial.inputs() | {"mask": trial.mask()}
    parts = [{role: x[part] for role, x in inputs.items()} for part in (slice(1), slice(1, None))]
    counts = torch.stack([trial.count(part) for part in parts])
    whole, values = trial.value(inputs), torch.stack([trial.value(part) for part in parts])
    mean = (values * counts).sum(dim=0) / counts.sum()
    same = whole.shape == mean.shape and torch.allclose(whole, mean, rtol=1e-4, atol=1e-6)
    require(same, f"the whole batch gives {read(whole)}, its parts {read(mean)} ({trial})")


@law()
def order_irrelevant(trial: Trial) -> None:
    """The order of the samples does not matter."""
    inputs = trial.inputs()
    order = torch.arange(trial.shape[0]).roll(1)
    require_equal(trial, inputs, {role: x[order] for role, x in inputs.items()}, "another order of the samples")


@law()
def deterministic(trial: Trial) -> None:
    """The same inputs, and the same state if it has one, give the same loss, and torch's random numbers stay."""
    before = torch.get_rng_state()
    first, second = (trial.value(trial.inputs()) for _ in range(2))
    require(torch.equal(first, second), f"two calls give {read(first)} and {read(second)} ({trial})")
    require(torch.equal(before, torch.get_rng_state()), f"it draws random numbers ({trial})")


@law()
def inputs_untouched(trial: Trial) -> None:
    """No input is changed, neither by the loss nor by its gradient."""
    inputs = trial.inputs() | {"mask": trial.mask()}
    before = {role: x.clone() for role, x in inputs.items()}
    trial.value(inputs)
    changed = [role for role in before if not torch.equal(inputs[role], before[role])]
    require(not changed, f"it changes its {' and '.join(changed)} in place ({trial})")
    student = inputs["student"].requires_grad_()
    torch.autograd.backward(trial.value({**inputs, "student": student}).sum())
    changed = [role for role in before if not torch.equal(inputs[role], before[role])]
    require(not changed, f"its gradient changes its {' and '.join(changed)} in place ({trial})")


@law()
def extreme_values(trial: Trial) -> None:
    """Inputs 10,000 times as large give a finite loss and gradient."""
    inputs = trial.inputs()
    large = inputs | {side: inputs[side] * 1e4 for side in ("student", "teacher")}
    require(bool(trial.value(large).isfinite().all()), f"inputs x 1e4 give {read(trial.value(large))} ({trial})")
    require(bool(trial.gradient(large).isfinite().all()), f"inputs x 1e4: the gradient is not finite ({trial})")


@law()
def bfloat16(trial: Trial) -> None:
    """bfloat16 inputs, nearly equal ones too, give the loss of the same numbers in float32, within 5 %."""
    inputs = trial.inputs()
    near = inputs | {"teacher": inputs["student"] + 0.1 * inputs["teacher"]}
    for given in (inputs, near):
        short = {role: x.bfloat16() if x.is_floating_point() else x for role, x in given.items()}
        exact = {role: x.float() if x.is_floating_point() else x for role, x in short.items()}
        value, expected = trial.value(short).float(), trial.value(exact)
        close = torch.allclose(value, expected, rtol=0.05, atol=1e-6)
        require(close, f"bfloat16 gives {read(value)}, float32 {read(expected)} ({trial})")


@law()
def gradcheck(trial: Trial) -> None:
    """The gradient is the derivative, in float64."""
    double, inputs = trial.double(), trial.inputs(torch.float64)
    student = inputs["student"].requires_grad_()
    torch.autograd.gradcheck(lambda x: double.value({**inputs, "student": x}), student)


@law("teacher", "temperature")
def temperature_scale(trial: Trial) -> None:
    """The size of the gradient does not depend on the temperature: T = 20 and T = 80 agree within 10 %."""
    cool, hot = (trial.tempered(t).gradient(trial.inputs()).norm().item() for t in (20.0, 80.0))
    require(0.9 < hot / max(cool, 1e-30) < 1.1, f"gradient {cool:.3g} at T = 20, {hot:.3g} at T = 80 ({trial})")


@law("logits")
def impossible_class(trial: Trial) -> None:
    """One more class, at -10,000 on both sides, changes nothing."""
    inputs = trial.inputs()
    wider = inputs | {side: padded(inputs[side]) for side in ("student", "teacher")}
    require_equal(trial, inputs, wider, "a class at -1e4 on both sides")


@law("logits", "tokens")
def tokens_as_samples(trial: Trial) -> None:
    """Each token is judged alone: as samples of one token each, (B, L, C) has the same loss as (B L, 1, C)."""
    inputs = trial.inputs()
    tokens = trial.shape[1]
    apart = {
        role: x.flatten(0, 1).unsqueeze(1) if x.dim() > 1 else x.repeat_interleave(tokens) for role, x in inputs.items()
    }
    require_equal(trial, inputs, apart, "every token as a sample of its own")


@law("mask")
def full_mask(trial: Trial) -> None:
    """A mask that is True everywhere is as no mask."""
    inputs = trial.inputs()
    require_equal(trial, inputs, inputs | {"mask": torch.ones_like(trial.mask())}, "a mask of True")


@law("mask")
def masked_out(trial: Trial) -> None:
    """What stands where the mask is False never counts, not even nan, and gets no gradient."""
    inputs = trial.inputs() | {"mask": trial.mask()}
    hole = trial.hole(inputs["mask"])
    for content in (1e3, float("nan")):
        filled = inputs | {side: inputs[side].masked_fill(hole, content) for side in ("student", "teacher")}
        require_equal(trial, inputs, filled, f"{content} where the mask is False")
        gradient = trial.gradient(filled)
        require(bool(gradient.isfinite().all()), f"{content} where the mask is False: nan in the gradient ({trial})")
        require(not gradient.masked_select(hole).any(), f"a gradient where the mask is False ({trial})")


@law("mask")
def mean_over_valid(trial: Trial) -> None:
    """A masked sample is as one that is not there."""
    inputs = trial.inputs()
    mask = torch.ones_like(trial.mask())
    mask[-1] = False
    require_equal(trial, {role: x[:-1] for role, x in inputs.items()}, inputs | {"mask": mask}, "a masked sample")


@law("mask")
def empty_mask(trial: Trial) -> None:
    """A mask that is False everywhere gives 0 with a gradient of zeros."""
    inputs = trial.inputs() | {"mask": torch.zeros_like(trial.mask())}
    value = trial.value(inputs)
    require(bool((value == 0).all()), f"nothing valid gives {read(value)} ({trial})")
    require(bool((trial.gradient(inputs) == 0).all()), f"nothing valid has a gradient that is not 0 ({trial})")


@law()
def any_strides(trial: Trial) -> None:
    """Tensors that are not contiguous are as good."""
    inputs = trial.inputs() | {"mask": trial.mask()}
    turned = {role: x.transpose(0, -1).contiguous().transpose(0, -1) for role, x in inputs.items()}
    require_equal(trial, inputs, turned, "tensors that are not contiguous")


@law("module")
def state_restores(trial: Trial) -> None:
    """Its state_dict holds all that the loss depends on, and loads as tensors alone do."""
    assert isinstance(trial.loss, nn.Module)
    state = io.BytesIO()
    torch.save(trial.loss.state_dict(), state)
    torch.load(io.BytesIO(state.getvalue()), weights_only=True)
    one, other = trial.value(trial.inputs()), trial.restored().value(trial.inputs())
    require(torch.equal(one, other), f"it gives {read(one)}, and one with its state_dict {read(other)} ({trial})")


def padded(logits: Tensor) -> Tensor:
    """(..., C) to (..., C + 1), the last class at -10,000."""
    return torch.nn.functional.pad(logits, (0, 1), value=-1e4)


def require_equal(trial: Trial, inputs: Inputs, changed: Inputs, what: str) -> None:
    """Raise AssertionError unless both inputs give the same loss, up to rounding."""
    one, other = trial.value(inputs), trial.value(changed)
    same = one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-6)
    require(same, f"{what} changes the loss: {read(one)} becomes {read(other)} ({trial})")


def read(value: Tensor) -> str:
    """A number, or the shape of what is none."""
    return f"{value.item():.6g}" if value.dim() == 0 else f"a tensor {tuple(value.shape)}"


PROPERTIES = (
    scalar_and_finite,
    student_gradient,
    teacher_detached,
    zero_at_agreement,
    flat_at_agreement,
    mean_over_batch,
    micro_batches,
    order_irrelevant,
    deterministic,
    inputs_untouched,
    extreme_values,
    bfloat16,
    gradcheck,
    temperature_scale,
    impossible_class,
    tokens_as_samples,
    full_mask,
    masked_out,
    mean_over_valid,
    empty_mask,
    any_strides,
    state_restores,
)

check_loss = Kit("loss", trials, PROPERTIES)
"""check_loss(options, exempt=None): AssertionError unless the loss has all of PROPERTIES that apply to it."""
