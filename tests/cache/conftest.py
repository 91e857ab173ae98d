"""A small teacher, its data, and caches of what it gives."""

import pytest
import torch

from hookbrew.cache import Full, examples, fingerprint, opened


@pytest.fixture(scope="session")
def seen():
    """The inputs of the teacher out of a batch, and their keys."""

    def look(batch):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return inputs, examples(inputs)

    return look


@pytest.fixture(scope="session")
def build(seen):
    """build(folder, teacher, batches, kind): the cache of what the teacher gives for batches of tokens."""

    def made(folder, teacher, batches, kind=None):
        kind = kind or Full()
        cache = opened(folder, fingerprint(teacher, kind.facts()))
        with torch.no_grad(), cache.writer(kind) as writer:
            for batch in batches:
                inputs, keyed = seen(batch)
                writer.put(keyed, {"logits": teacher(**inputs)})
        cache.refresh()
        return cache

    return made
