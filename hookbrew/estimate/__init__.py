"""What a training would need on several GPUs, from one step of it that is made here: `hookbrew plan`."""

from hookbrew.estimate import page
from hookbrew.estimate.estimate import Estimate, Hardware, Line, estimated
from hookbrew.estimate.measure import Measured, Trail, measured
from hookbrew.estimate.sizes import Weight

__all__ = ["Estimate", "Hardware", "Line", "Measured", "Trail", "Weight", "estimated", "measured", "page"]
