"""AugMix: mixtures of chains of ops, and a loss by which a classifier sees them alike."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from autoaug_ray.data import Split
from autoaug_ray.learner import Learner
from autoaug_ray.maths import policies
from autoaug_ray.maths.strength import Strength
from autoaug_ray.methods.base import NextMeta
from autoaug_ray.methods.stage import Staged
from autoaug_ray.settings.training import Training

VIEWS = 3
"""Each image is seen so many times: as it is, and as two of its mixtures."""


def divergence(logits: Tensor) -> Tensor:
    """(n,) Jensen-Shannon divergence of the predictions of several views, logits (n, views, C).

    The mean of the KL divergences to the mean prediction, which is at least 1e-7, as in the
    authors' code.
    """
    log_p = torch.log_softmax(logits, dim=2)
    p = log_p.exp()
    log_mean = p.mean(1, keepdim=True).clamp(1e-7, 1).log()
    return (p * (log_p - log_mean)).sum(2).mean(1)


class AugMix(Staged):
    """Hendrycks et al., ICLR 2020 (arXiv 1912.02781): mixed chains of ops, seen alike.

    The policy is `maths.policies.AugMix`. The loss is the cross-entropy of the images as they are,
    but for the stage, plus `consistency` times the Jensen-Shannon divergence of their predictions
    and those of two mixtures (eq. 1), all three in one pass of three times the batch. Constants are
    those of the authors' code, google-research/augmix, cifar.py. The three share flip, crop, cutout
    and erasing.
    """

    name: Literal["augmix"] = "augmix"
    consistency: float = Field(12.0, ge=0, le=1000)
    """Weight of the divergence; 12 is the paper's. 0: the cross-entropy of one mixture, without the
    others, as the code's --no-jsd; a row of it is to say so in its label."""
    severity: float = Field(3.0, ge=0.1, le=10)
    """Upper end of the levels, of 10."""
    chains: int = Field(3, ge=1, le=10)
    """Mixed for an image; the code's mixture width."""
    depth: int | None = Field(None, ge=1, le=10)
    """Ops of a chain; None: 1, 2 or 3 by chance."""

    @property
    def left_out(self) -> str:
        return "the loss for which an image and its mixtures look alike" if self.consistency else ""

    def check(self, training: Training) -> None:
        if self.consistency and training.batch_size % training.accumulate:
            raise ValueError(
                "method: augmix keeps the views of an image together and needs train.accumulate "
                f"that divides train.batch_size, {training.batch_size}, got {training.accumulate}"
            )

    def transform(
        self, state: Any, images: Tensor, noise: torch.Generator, strength: Strength | None = None
    ) -> Tensor:
        return policies.AugMix(self.severity, self.chains, self.depth)(images, noise, strength)

    def step(
        self, learner: Learner, batch: Split, next_meta: NextMeta, state: Any
    ) -> dict[str, Tensor]:
        if not self.consistency:
            return super().step(learner, batch, next_meta, state)
        noise = learner.noise
        with torch.no_grad():
            x = self.select(state, batch, noise)
            x = self.before(x, self.draw_flips(state, x, noise), noise)
            views = [x, *(self.transform(state, x, noise) for _ in range(VIEWS - 1))]
            holes = self.draw_holes(x, noise)
            # The views of an image follow each other, so that a part of the batch has all three.
            views = [self.after(state, view, holes) for view in views]
            images, labels = torch.stack(views, dim=1).flatten(0, 1), batch.labels
        apart = torch.zeros(len(images), device=images.device)

        def criterion(logits: Tensor, part: slice) -> Tensor:
            of_views = logits.unflatten(0, (-1, VIEWS))
            differ = divergence(of_views)
            apart[part] = differ.detach().repeat_interleave(VIEWS)
            clean = learner.cross_entropy(
                of_views[:, 0], labels.repeat_interleave(VIEWS)[part][::VIEWS]
            )
            return clean + self.consistency * differ.mean()

        loss = learner.train_on(images, labels, criterion)
        (apart,) = learner.workers.total([apart])
        return {"train_loss": loss, "divergence": apart.mean()}
