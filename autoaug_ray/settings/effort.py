"""What a search may try, and what a training may hold."""

from typing import Literal

from pydantic import Field

from autoaug_ray.settings import Settings


class Search(Settings):
    """How the trials of a method with ranges are chosen and stopped."""

    samples: int = Field(1, ge=1, le=100_000)
    """Draws of the random ranges for each combination of the grids."""
    scheduler: Literal["fifo", "asha"] = "fifo"
    """asha stops the worse trials early. Which ones depends on which arrived first, as in its paper
    (Li et al. 2020), so that another run of the same study may choose another setting."""
    grace_epochs: int = Field(2, ge=1)
    """ASHA: epochs a trial runs before it may be stopped."""
    reduction: int = Field(3, ge=2)
    """ASHA: one trial in so many goes on at each rung."""


class Resources(Settings):
    """What one trial holds; its device-hours are seconds x gpus, or x cpus without a GPU."""

    cpus: float = Field(1, gt=0)
    gpus: float = Field(0, ge=0)
    workers: int = Field(1, ge=1, le=1024)
    """Processes that share the parts of every batch (train.accumulate: a multiple of it) of one
    training; each holds so many cpus and gpus."""
