"""EntAugment: an image is augmented the more, the surer the classifier was of it the last time."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autoaug_ray.data import Split
from autoaug_ray.learner import Learner
from autoaug_ray.maths import plans, policies
from autoaug_ray.maths.strength import Strength
from autoaug_ray.methods.base import NextMeta, Task
from autoaug_ray.methods.stage import Staged

TOP = 30
"""The strongest level."""


def normalised_entropy(logits: Tensor) -> Tensor:
    """(B,) entropy of softmax(logits) over log classes, its largest value, for logits (B, classes).

    It is 0 for a prediction without doubt and 1 for a uniform one; differentiable.
    """
    log_p = torch.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1) / math.log(logits.shape[1])


def level_of(magnitude: Tensor) -> Tensor:
    """(B,) uint8 levels 1..TOP for magnitudes (B,) in [0, 1]: min(int(TOP m) + 1, TOP)."""
    return ((TOP * magnitude).long() + 1).clamp(1, TOP).to(torch.uint8)


class EntAugmentState(nn.Module):
    """What is remembered of every image of the pool, and whether the warm-up goes on."""

    levels: Tensor  # (images of the pool,) uint8
    warm: Tensor  # () bool

    def __init__(self, images: int) -> None:
        super().__init__()
        # As published: a magnitude of 0 until the image has been seen.
        self.register_buffer("levels", torch.ones(images, dtype=torch.uint8))
        self.register_buffer("warm", torch.tensor(True))

    def remember(self, rows: Tensor, magnitude: Tensor) -> None:
        """Keep the level of magnitudes (B,) for the images at rows (B,) of the pool."""
        # The least for an image that a batch holds twice: no order of writing can change that.
        self.levels.scatter_reduce_(0, rows, level_of(magnitude), "amin", include_self=False)


class EntAugment(Staged):
    """Yang et al., ECCV 2024 (arXiv 2409.06290): one random op, at the level of the sample's own.

    The magnitude is 1 - H(p) / log C, where p is the prediction that the last training step gave of
    the sample, augmented as it was there; the level is min(int(30 magnitude) + 1, 30). Harder
    samples are augmented less. Before this comes a warm-up by TrivialAugment in the same space.
    `warm_up: 1` never leaves it, and is the control that remembers nothing.

    All details are those of the authors' code, Jackbrocp/EntAugment, as the paper's text was not at
    hand: the 14 ops and their ranges, the levels, the magnitude of an image that has not been seen
    (0), the loss. What differs: there, the warm-up takes 11 of 300 epochs, though a constant and a
    comment say 10; and the op comes before flip and crop, where here it stands between crop and
    cutout, as every policy does.
    """

    name: Literal["entaugment"] = "entaugment"
    warm_up: float = Field(10 / 300, ge=0, le=1)
    """Share of the training that warms up; by default 10 of 300 epochs. Images that it is too short
    to reach have a magnitude of 0 until they are seen."""
    space: Literal["standard", "torchvision"] = "standard"
    """The ranges of the ops: `standard`, those of the authors' code, where a higher level is not
    always a stronger op (`maths.policies.standard_bins`), or `torchvision`, RandAugment's there,
    where it is."""
    entropy_loss: bool = False
    """Whether the classifier's loss is EntLoss, the paper's second contribution: cross-entropy plus
    the prediction's H(p) / log C, with weight 1. By the abstract, the two are used apart or
    together; the code's training by EntAugment has cross-entropy alone."""

    def init(self, task: Task, seed: int, device: torch.device) -> EntAugmentState:
        return EntAugmentState(sum(task.class_counts)).to(device)

    def transform(
        self,
        state: EntAugmentState,
        images: Tensor,
        noise: torch.Generator,
        strength: Strength | None = None,
    ) -> Tensor:
        """The policy for any images (B, C, H, W): each takes the level of a random one of the pool.

        A probe, and the user of an exported policy, thus get the levels in their distribution, but
        not which image had which. `step` gives each image its own.
        """
        if state.warm:
            return self._policy(None)(images, noise, strength)
        n = len(state.levels)
        whose = torch.randint(n, (len(images),), generator=noise, device=images.device)
        return self._policy(state.levels[whose])(images, noise, strength)

    def transform_plan(self, state: EntAugmentState, task: Task) -> list[plans.Stage]:
        return [plans.of_policy(self._policy(None if state.warm else state.levels), task.size)]

    def _policy(self, level: Tensor | None) -> policies.OneOp:
        """At levels (B,); at random ones if None, of which the code has one fewer."""
        return policies.OneOp(self.space, TOP if level is None else TOP + 1, level)

    def step(
        self, learner: Learner, batch: Split, next_meta: NextMeta, state: EntAugmentState
    ) -> dict[str, Tensor]:
        rows, labels, noise = batch.rows, batch.labels, learner.noise
        assert rows is not None
        warm = learner.progress < self.warm_up
        state.warm.fill_(warm)
        with torch.no_grad():
            x = self.select(state, batch, noise)
            x = self.before(x, self.draw_flips(state, x, noise), noise)
            x = self._policy(None if warm else state.levels[rows])(x, noise)
            x = self.after(state, x, self.draw_holes(x, noise))
        magnitude = torch.zeros(len(x), device=x.device)

        def criterion(logits: Tensor, part: slice) -> Tensor:
            entropy = normalised_entropy(logits)
            magnitude[part] = 1 - entropy.detach()
            loss = learner.cross_entropy(logits, labels[part])
            return loss + entropy.mean() if self.entropy_loss else loss

        loss = learner.train_on(x, labels, criterion)
        (magnitude,) = learner.workers.total([magnitude])
        state.remember(rows, magnitude)
        return {"train_loss": loss, "magnitude": magnitude.mean()}

    def found_figures(self, row: Mapping[str, Any]) -> dict[str, float]:
        """The magnitude that the last epoch's steps gave, as a mean over them."""
        return {"mean magnitude": row["log"]["magnitude"]}
