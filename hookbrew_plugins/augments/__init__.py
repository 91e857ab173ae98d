"""The augmentations of the standard pack: a batch and a generator in, a new batch out."""

from hookbrew_plugins.augments.masking import Masking, masked

__all__ = ["Masking", "masked"]
