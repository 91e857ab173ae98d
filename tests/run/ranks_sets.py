"""Settings of runs that one process makes, and two."""

UNEVEN = ["data.train.number=26", "data.batch_size=5", "train.accumulate=2", "train.clip_grad_norm=0.1"]
"""Batches of 5 samples, and at the end of an epoch one of a single sample: the second rank has none of it."""
CAPTURED = ["losses=[{type='hidden_mse', student='layers[*]', teacher='layers[*]', projection='linear'}]"]
CALLBACKS = [
    "callbacks=[{type='ema', decay=0.9}, {type='freeze', modules=['layers[0]'], after=3, until=7}, {type='best'}]",
    "train.evaluate_every=4",
]
WIDER = "{factory='torch.nn:Linear', in_features=8, out_features=8}"
SURGERY = [
    "surgery=[{type='freeze', path='embed'}, {type='swap', path='layers[1]', module="
    + WIDER
    + "}, {type='reset', path='head'}, {type='reset', model='teacher', path='head'}]"
]
CRD = ["losses=[{type='crd', student='head', teacher='head', samples=26, dimension=4, negatives=8}]", *UNEVEN]
NORM = ["student.factory='toyland:Dropping'", "data.train.number=11"]
"""At the end of an epoch 3 samples: two processes cannot train batch norm on one."""
SHARD, BOTH, HALVE = "train.shard='student'", "train.shard='both'", "train.out_of_memory='halve'"
