"""What one training holds of a machine."""

from pydantic import Field

from autoaug_ray.settings import Settings


class Resources(Settings):
    """What one trial holds; its device-hours are seconds x gpus, or x cpus without a GPU."""

    cpus: float = Field(1, gt=0)
    gpus: float = Field(0, ge=0)
    workers: int = Field(1, ge=1, le=1024)
    """Processes that share the parts of every batch (train.accumulate: a multiple of it) of one
    training; each holds so many cpus and gpus."""
