"""What was tapped is let go of before backward: what a loss has kept of it goes as backward comes by."""

import weakref

import pytest

import hookbrew as hb

LOSSES = {
    "hidden": ([hb.loss("hidden_mse", student="blocks[0]", teacher="blocks[0]", mask=False)], {}),
    "several": (
        [hb.loss(name, student="blocks[0]", teacher="blocks[0]", mask=False) for name in ("cos", "hidden_mse", "pkd")],
        {},
    ),
    "logits": ([hb.loss("kl")], {"chunked": True}),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_the_teachers_tensors_are_gone_when_backward_reaches_the_student(tagger, batches, name, accumulate):
    losses, options = LOSSES[name]
    student, teacher = tagger(8, pooled=False), tagger(8, pooled=False)
    tapped, there = [], []

    def keep(_module, _given, output):
        tapped.append(weakref.ref(output))

    def watch(_module, _given, output):
        if output.requires_grad and len(tapped) > 1:  # not of the look at the first batch
            output.register_hook(lambda _: there.append(tapped[-1]() is not None))

    (teacher.dropout if options else teacher.blocks[0]).register_forward_hook(keep)
    student.blocks[0].register_forward_hook(watch)
    run = hb.Distillation(teacher, student, losses)
    run.fit(batches([4, 4], [3, 3]), epochs=1, accumulate=accumulate, **options)
    assert there == [False, False]
