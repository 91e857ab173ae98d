"""What a training has in memory at one time."""

from hookbrew.estimate.peak import Peak
from hookbrew.run import run


def peak(file, sets, catalogue):
    """Bytes, the most in any step of a run."""
    found = Peak()
    run(file, sets, catalogue=catalogue, quiet=True, profile=found)
    return found.most
