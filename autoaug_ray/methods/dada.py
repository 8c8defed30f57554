"""DADA: sub-policies learned by gradient descent through their relaxation."""

from itertools import combinations
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autoaug_ray.data import Split
from autoaug_ray.learner import Learner
from autoaug_ray.maths import hypergradient
from autoaug_ray.maths.image_ops import OPS
from autoaug_ray.maths.policies import SubPolicies
from autoaug_ray.maths.relaxed_policy import RelaxedPolicy
from autoaug_ray.methods.base import Learning, NextMeta, Task, as_float
from autoaug_ray.methods.discrete import Searched, SubPolicyState

PAIRS = tuple(combinations(OPS, 2))
"""The 105 sub-policies to choose from."""


class DadaState(Learning):
    """The relaxed policy and its optimiser, while it is learned."""

    def __init__(self, relaxed: RelaxedPolicy, lr: float) -> None:
        super().__init__()
        self.relaxed = relaxed
        self.optimiser = torch.optim.Adam(relaxed.parameters(), lr=lr, betas=(0.5, 0.999))

    @property
    def policy(self) -> SubPolicies:
        return self.relaxed.discrete(len(PAIRS))


class Dada(Searched):
    """Li et al. 2020 (arxiv.org/abs/2003.03780): which pairs of ops, how often and how strongly.

    Without `sub_policies` a training learns them: the classifier trains on a fixed half of each
    class, augmented by the policy as it is, and the other half tells the policy where to go. What
    the final training draws from are the `keep` likeliest pairs with their learned chances (the
    release draws them uniformly). Here every sample draws its own, there the whole batch one.

    The ops are those of `image_ops.OPS`, with Identity in the place of the paper's Cutout. The
    relaxation is `maths.relaxed_policy`: straight-through Gumbel, not the paper's RELAX estimator.
    """

    name: Literal["dada"] = "dada"
    gradient: Literal["hypergradient", "first_order"] = "hypergradient"
    """hypergradient is the paper's: down the loss of the *clean* held-out half after the
    classifier's own step on the augmented images; exact here, by finite differences there.
    first_order is AdaAug's (Cheung and Yeung 2022): down the loss of the *augmented* held-out half
    at fixed weights; there the policy depends on the image, here one serves all."""
    normalise: bool = True
    """Whether the hypergradient looks ahead with gradients of a fixed length, as bilevel does."""
    tau: float = Field(0.5, gt=0, le=100)
    """Temperature of the relaxed choices; the release's 0.1 leaves noisier gradients."""
    lr: float = Field(0.03, gt=0, le=10)
    """Learning rate of the policy's parameters, for Adam with DADA's betas (0.5, 0.999). The
    release has 3e-4 and a weight decay: its policies stay where they started for some hundred
    steps."""
    keep: int = Field(25, ge=1, le=len(PAIRS))
    """Sub-policies of the final training."""

    @property
    def meta_fraction(self) -> float | None:
        return 0.5

    def init(self, task: Task, seed: int, device: torch.device) -> nn.Module:
        if self.sub_policies is not None:
            return SubPolicyState(SubPolicies(self.sub_policies, self.weights))
        return DadaState(RelaxedPolicy(PAIRS, self.tau).to(device), self.lr)

    def found_hyperparameters(self, state: DadaState) -> dict[str, Any]:
        policy = state.relaxed.discrete(self.keep)
        return {"sub_policies": policy.table, "weights": policy.weights}

    def step(
        self, learner: Learner, batch: Split, next_meta: NextMeta, state: Any
    ) -> dict[str, Tensor]:
        if not self.searches_in_own_run:
            return super().step(learner, batch, next_meta, state)
        meta = next_meta(len(batch))
        if self.gradient == "first_order":
            logs = super().step(learner, batch, next_meta, state)
            loss = learner.loss_at(self._relaxed(state, meta, learner.noise), meta.labels)
            logs["meta_loss"], gradients = hypergradient.towards(
                loss, learner.weights(), list(state.parameters())
            )
        else:
            images = self._relaxed(state, batch, learner.noise)
            # The look-ahead's gradient is the classifier's own: its images are the discrete ones.
            h = hypergradient.unrolled(
                [learner.loss_at(images, batch.labels, real_pass=True, smoothed=True)],
                learner.loss_at(as_float(meta.images), meta.labels),
                {k: v.detach().requires_grad_() for k, v in learner.weights().items()},
                learner.buffers(),
                list(state.parameters()),
                [learner.rule],
                hold=hypergradient.same_length if self.normalise else None,
            )
            learner.apply(h.weights)
            gradients = h.theta
            logs = {"train_loss": h.train_loss, "meta_loss": h.meta_loss}
        state.move(gradients)
        return logs

    def _relaxed(self, state: DadaState, batch: Split, noise: torch.Generator) -> Tensor:
        """Augmented images (B, C, H, W) in [0, 1] with a gradient towards the policy."""
        x = as_float(batch.images)
        x = self.before(x, self.draw_flips(state, x, noise), noise)
        x = state.relaxed(x, noise)
        return self.after(state, x, self.draw_holes(x, noise))

    def end_epoch(self, state: Any) -> dict[str, float]:
        """While it learns: mean probability and magnitude of a drawn step, and the perplexity of
        the choice: 105 where all pairs are alike."""
        if not self.searches_in_own_run:
            return {}
        relaxed: RelaxedPolicy = state.relaxed
        pi = relaxed.choice.detach().softmax(0)
        return {
            "probability": float(pi @ relaxed.probability.detach().sigmoid().mean(1)),
            "magnitude": float(pi @ relaxed.magnitude.detach().sigmoid().mean(1)),
            "effective_sub_policies": float(torch.exp(-(pi * pi.log()).sum())),
        }
