"""What a study's `train:` may say."""

from typing import Literal

from pydantic import Field

from autoaug_ray.settings import Settings


class Training(Settings):
    """What a study's `train:` may say; the same for every method of a study."""

    epochs: int = Field(10, ge=1, le=10_000)
    """One epoch is as many images as the pool holds, even if meta images are held out of it."""
    iters_per_epoch: int | None = Field(None, ge=1, le=1_000_000)
    """Steps of an epoch, for pools that are too small for epochs of one pass; None: one pass."""
    batch_size: int = Field(64, ge=2, le=65_536)
    optimiser: Literal["sgd", "adam"] = "sgd"
    lr: float = Field(0.1, gt=0, le=100)
    momentum: float = Field(0.9, ge=0, lt=1)
    """Heavy-ball momentum; sgd alone has it, and `nesterov`."""
    weight_decay: float = Field(5e-4, ge=0, le=1)
    nesterov: bool = False
    schedule: Literal["constant", "cosine", "onecycle", "step"] = "onecycle"
    """onecycle: linear warm-up over a quarter, then cosine to zero. step: x0.2 at 30, 60, 80 %."""
    meta_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the pool in the meta role, dealt anew each epoch, for methods that need it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 autocast for plain steps and evaluation; hypergradients are always fp32."""
    compile: bool = False
    """torch.compile for plain steps; double backward through a compiled model is refused by torch,
    so hypergradients run eagerly."""

    def steps_per_epoch(self, pool: int) -> int:
        """Steps of an epoch on a pool of so many images."""
        return self.iters_per_epoch or max(1, pool // self.batch_size)

    def steps(self, pool: int) -> int:
        """Steps of a whole training on a pool of so many images."""
        return self.epochs * self.steps_per_epoch(pool)
