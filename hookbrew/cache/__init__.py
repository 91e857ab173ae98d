"""Teacher outputs on disk, by the content of the example that they belong to."""

from hookbrew.cache.cache import Cache, opened
from hookbrew.cache.fingerprint import Fingerprint, fingerprint
from hookbrew.cache.keys import Examples, examples
from hookbrew.cache.kinds import Full, Hidden, Kind, Part, TopK
from hookbrew.cache.lesson import Lesson
from hookbrew.cache.lessons import Attending, Lessons, attended
from hookbrew.cache.rounded import Rounded
from hookbrew.cache.sampled import Sampled
from hookbrew.cache.writer import Writer

__all__ = [
    "Attending",
    "Cache",
    "Examples",
    "Fingerprint",
    "Full",
    "Hidden",
    "Kind",
    "Lesson",
    "Lessons",
    "Part",
    "Rounded",
    "Sampled",
    "TopK",
    "Writer",
    "attended",
    "examples",
    "fingerprint",
    "opened",
]
