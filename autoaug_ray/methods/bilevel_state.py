"""What a bilevel training keeps from step to step."""

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoaug_ray.maths import hypergradient
from autoaug_ray.maths.augmenter import AbstractAugmenter
from autoaug_ray.maths.gumbel import likelihood_ratio
from autoaug_ray.methods.base import Aligned
from autoaug_ray.methods.erasing import Holes
from autoaug_ray.methods.mixture_state import MixtureState


class Past(NamedTuple):
    """A step that was taken, as the unrolling needs it again."""

    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]
    images: Tensor
    labels: Tensor
    kind: Tensor | None
    """(B,) which kind of image was drawn, of several."""
    flips: Tensor | None
    """(B,) which images were mirrored, if the chance of that is learned."""
    noise: Tensor
    holes: Holes
    rule: hypergradient.Rule


class FlipState(nn.Module):
    """The chance that an image is mirrored, which begins at one half."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(()))

    @property
    def log_chances(self) -> Tensor:
        """(2,) of not being mirrored, and of being mirrored."""
        return F.logsigmoid(torch.stack([-self.logit, self.logit]))


class BilevelState(Aligned):
    """The augmenter and its optimiser, and the averages that a hypergradient may need.

    Figures and past steps live for one epoch only.
    """

    optimiser: torch.optim.Optimizer

    def __init__(
        self,
        augmenter: AbstractAugmenter,
        optimiser: torch.optim.Optimizer,
        mixture: MixtureState | None = None,
        flip: FlipState | None = None,
        memory: float = 20.0,
    ) -> None:
        super().__init__(memory)
        self.augmenter, self.optimiser = augmenter, optimiser
        self.mixture, self.flip = mixture, flip
        self.new_epoch()

    def new_epoch(self) -> None:
        self.past: deque[Past] = deque()
        self.momenta: dict[str, Tensor] = {}
        self.outer_steps = 0
        self.sum = [torch.zeros_like(p) for p in self.parameters()]
        self.sum_of_squares = [torch.zeros_like(p) for p in self.parameters()]
        self.sum_of_norms = torch.zeros((), device=self.sum[0].device)

    def likelihood_ratios(self, past: Past) -> Tensor | None:
        """(B,) ones with the derivative of the log chance of what was drawn; None: nothing was."""
        ratios = None
        if self.mixture is not None and past.kind is not None:
            ratios = likelihood_ratio(self.mixture.log_alpha[past.labels], past.kind)
        if self.flip is not None and past.flips is not None:
            chances = self.flip.log_chances.expand(len(past.flips), 2)
            of_flips = likelihood_ratio(chances, past.flips.long())
            ratios = of_flips if ratios is None else ratios * of_flips
        return ratios

    def record(self, gradients: list[Tensor]) -> None:
        self.outer_steps += 1
        for total, squares, g in zip(self.sum, self.sum_of_squares, gradients, strict=True):
            total += g
            squares += g.square()
        self.sum_of_norms += torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
