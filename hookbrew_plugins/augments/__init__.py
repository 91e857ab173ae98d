"""The augmentations of the standard pack: a batch and a generator in, a new batch out.

`masking`, `deleting`, `n_gram_sampling`, `short_disorder` and `long_disorder` are functions of a list of tokens.
"""

from hookbrew_plugins.augments.images import CutMix, Mixup
from hookbrew_plugins.augments.lists import deleting, long_disorder, masking, n_gram_sampling, short_disorder
from hookbrew_plugins.augments.text import Deleting, LongDisorder, Masking, NGramSampling, ShortDisorder

__all__ = [
    "CutMix",
    "Deleting",
    "LongDisorder",
    "Masking",
    "Mixup",
    "NGramSampling",
    "ShortDisorder",
    "deleting",
    "long_disorder",
    "masking",
    "n_gram_sampling",
    "short_disorder",
]
