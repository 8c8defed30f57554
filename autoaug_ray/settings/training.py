"""What a study's `train:` may say."""

from typing import Literal, Self

from pydantic import Field, model_validator

from autoaug_ray.errors import UserError
from autoaug_ray.settings import Settings


class Training(Settings):
    """What a study's `train:` may say; the same for every method of a study."""

    epochs: int = Field(10, ge=1, le=10_000)
    """One epoch is as many images as the pool holds, even if meta images are held out of it."""
    iters_per_epoch: int | None = Field(None, ge=1, le=1_000_000)
    """Steps of an epoch, for pools that are too small for epochs of one pass; None: one pass."""
    batch_size: int = Field(64, ge=2, le=65_536)
    accumulate: int = Field(1, ge=1, le=4096)
    """Parts in which a batch is worked off, one after the other, for a batch that does not fit in
    memory; several processes may share them (resources.workers). Gradients and hypergradients are
    those of the whole batch but for batch norm, which takes its statistics in each part by itself:
    with it, a hypergradient from 4 parts of 16 images has a mean cosine of 0.90 to that of the
    whole (`python -m autoaug_ray.bench memory`). A hypergradient passes through every part of its
    training batch twice, a plain step more than without parts."""
    recompute: bool = False
    """Activation checkpointing for hypergradients: the inside of a residual block is computed
    again whenever it is needed, instead of being kept. The gradient is the same."""
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    """adam adds the weight decay to the gradient, as L2; adamw takes it off the weights."""
    lr: float = Field(0.1, gt=0, le=100)
    momentum: float = Field(0.9, ge=0, lt=1)
    """Heavy-ball momentum; sgd alone has it, and `nesterov`."""
    weight_decay: float = Field(5e-4, ge=0, le=1)
    weight_decay_on: Literal["all", "matrices"] = "all"
    """matrices: neither on biases, norms and scales nor on a transformer's tokens and positions, as
    in the recipes of timm, DeiT and BEiT."""
    nesterov: bool = False
    lr_decay: float = Field(1.0, gt=0, le=1)
    """Layer-wise: the last layer learns at `lr`, each block of the network before it at so many
    times the rate of the block after it; timm's --layer-decay, BEiT's. 1: all alike."""
    schedule: Literal["constant", "cosine", "onecycle", "step"] = "onecycle"
    """onecycle: linear warm-up over a quarter, then cosine to zero. step: x0.2 at 30, 60, 80 %."""
    warmup: float = Field(0.0, ge=0, lt=1)
    """Share of the steps over which the rate rises in a straight line, before schedule: cosine."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of a label that all classes have in equal parts, in the loss of training batches. A
    meta loss, by which a method learns, has none."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights and of what batch norm has seen, taken
    at each step; the average is evaluated in the place of the weights, and trains nothing. It looks
    back over some 1 / (1 - ema) steps, which must not be more than the training has."""
    meta_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the pool in the meta role, dealt anew each epoch, for methods that need it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 autocast for plain steps and evaluation."""
    hypergradient_precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 autocast for hypergradients, and for the classifier's steps that share their gradient.
    Measured on CPU for a ResNet-20: a mean cosine of 0.998 to those in fp32, 0.991 at worst
    (`python -m autoaug_ray.bench memory`)."""
    compile: bool = False
    """torch.compile for plain steps; double backward through a compiled model is refused by torch,
    so hypergradients run eagerly."""

    @model_validator(mode="after")
    def _parts_of_two(self) -> Self:
        if self.batch_size < 2 * self.accumulate:
            raise ValueError(
                f"accumulate: {self.accumulate} parts of a batch_size of {self.batch_size} would "
                "have fewer than two images, of which batch norm has no statistics"
            )
        return self

    @model_validator(mode="after")
    def _one_warm_up(self) -> Self:
        if self.warmup and self.schedule != "cosine":
            raise ValueError(
                f"warmup: {self.warmup} needs schedule: cosine, got schedule: {self.schedule}"
                f"{', which rises over a quarter' * (self.schedule == 'onecycle')}"
            )
        return self

    def check(self, pool: int) -> None:
        """Raise UserError for what does not suit a training on a pool of so many images."""
        steps = self.steps(pool)
        if self.ema is not None and 1 / (1 - self.ema) > steps:
            raise UserError(
                f"train.ema: {self.ema} averages over some {1 / (1 - self.ema):.0f} steps, and the "
                f"whole training has {steps}; {1 - 10 / (steps + 10):.3g} averages over a tenth."
            )

    def steps_per_epoch(self, pool: int) -> int:
        """Steps of an epoch on a pool of so many images."""
        return self.iters_per_epoch or max(1, pool // self.batch_size)

    def steps(self, pool: int) -> int:
        """Steps of a whole training on a pool of so many images."""
        return self.epochs * self.steps_per_epoch(pool)
