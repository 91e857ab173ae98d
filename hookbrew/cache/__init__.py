"""Teacher outputs on disk, by the content of the example that they belong to."""

from hookbrew.cache.fingerprint import Fingerprint, fingerprint
from hookbrew.cache.keys import Examples, examples

__all__ = ["Examples", "Fingerprint", "examples", "fingerprint"]
