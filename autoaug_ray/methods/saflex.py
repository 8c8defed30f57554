"""Augmented samples weighed and labelled anew, batch by batch: SAFLEX, on top of any policy."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from autoaug_ray.data import Split
from autoaug_ray.learner import Learner
from autoaug_ray.maths import alignment, hypergradient, saflex
from autoaug_ray.maths.recompute import SameDraws
from autoaug_ray.methods.base import NextMeta, as_float
from autoaug_ray.methods.discrete import RandAugment
from autoaug_ray.methods.generative import OnTop, Then
from autoaug_ray.settings.training import Training


class Saflex(OnTop):
    """Ding et al., ICLR 2024 (arXiv 2410.02512): weights and soft labels of augmented samples.

    The policy `then` augments a batch. The gradient of a meta batch's loss then says, in closed
    form, which of these samples help (weight 1, otherwise 0) and which label each should have; the
    classifier's step is on that. `maths.saflex` has the derivation.

    From the paper: what is chosen and for what (a bilevel problem), one greedy choice for each
    batch by matching gradients to first order, a linear programme, any policy upstream. Its formula
    was not at hand, nor is there public code; ours: the closed form is derived again, alignments
    are in units of their root mean square in the batch, `prior` and `temperature` have defaults of
    ours, all samples of a batch are augmented, and train and meta images are dealt anew every
    epoch.
    """

    name: Literal["saflex"] = "saflex"
    then: Then = RandAugment()
    """The policy upstream. RandAugment is one of the paper's."""
    prior: float = Field(5.0, ge=0, le=1000)
    """beta: how much more a class must be aligned than the label of a sample to replace it, in
    units of the batch's root mean square alignment."""
    temperature: float = Field(1.0, ge=0, le=1000)
    """tau, in the same units: how soft labels are. 0: one class for each sample."""
    learn: Literal["on", "off"] = "on"
    """off is the control: weights of 1 and the labels as they are, on the same images."""

    @field_validator("learn", mode="before")
    @classmethod
    def _a_word(cls, value: Any) -> Any:
        """YAML reads on and off as true and false."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @property
    def uses_meta(self) -> bool:
        return True

    def check(self, training: Training) -> None:
        if training.accumulate > 1:
            raise ValueError(
                "method: saflex labels whole batches and needs train.accumulate: 1, got "
                f"{training.accumulate}"
            )

    def found_figures(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Shares of the last epoch."""
        names = {"kept": "share of samples kept", "p/label": "probability of the given label"}
        return {name: row["log"][k] for k, name in names.items() if k in row["log"]}

    def step(
        self, learner: Learner, batch: Split, next_meta: NextMeta, state: Any
    ) -> dict[str, Tensor]:
        if self.learn == "off":
            return super().step(learner, batch, next_meta, state)
        with torch.no_grad():
            images = self.augment(state, self.select(state, batch, learner.noise), learner.noise)
        meta = next_meta(len(images))
        w = learner.weights()
        meta_loss, v = hypergradient.value_and_gradient(
            learner.loss_at(as_float(meta.images), meta.labels), w
        )
        there, eps = alignment.shifted(w, {k: -x for k, x in v.items()})
        same_draws = SameDraws()
        with same_draws():
            before = logits = learner.logits(images)
        with torch.no_grad():
            if not learner.same_precision:
                with same_draws():
                    before = learner.logits_at(images, w)
            with same_draws():
                after = learner.logits_at(images, there)
            a = saflex.alignments(before, after, eps)
            y = saflex.soft_labels(a, batch.labels, self.prior, self.temperature)
            s = saflex.weights(a, y)
            smoothing = learner.training.label_smoothing
            targets = saflex.targets((1 - smoothing) * y + smoothing / y.shape[1], s)
        loss = F.cross_entropy(logits, targets)
        learner.descend(loss)
        return {
            "train_loss": loss.detach(),
            "meta_loss": meta_loss,
            "kept": s.mean(),
            "p/label": y.gather(1, batch.labels[:, None]).mean(),
        }
