"""Fast AutoAugment: policies under which held-out images still look like training images."""

import importlib.util
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from autoaug_ray.errors import RunError
from autoaug_ray.learner import Learner
from autoaug_ray.maths.image_ops import OPS
from autoaug_ray.maths.policies import Step, SubPolicies, SubPolicy
from autoaug_ray.methods.base import NextMeta, Task, as_float
from autoaug_ray.methods.discrete import Searched, SubPolicyState

if TYPE_CHECKING:
    import optuna

BATCH = 500
"""Images of one forward pass."""
TIMED = 8
"""Candidates that a forecast tries, to know how long one takes."""


class FastAutoAugmentState(SubPolicyState):
    """The sub-policies in force, and how the candidates for it fared."""

    figures: dict[str, float] = {}


class FastAutoAugment(Searched):
    """Lim et al. 2019 (arxiv.org/abs/1905.00397): density matching, without training again.

    Without `sub_policies` a training finds them. The classifier learns from a fixed part of each
    class, augmented by the shared stage alone. After its last step, policies that Optuna's TPE
    sampler proposes are scored by its loss on the other images, augmented by them: the criterion
    of the paper (section 3.2); the release takes the best of several augmentations of each image.
    The sub-policies of the `keep` best are what the final training draws from.

    A candidate costs a few forward passes, much less than a Tune trial, so all of them are tried in
    the run that trained the classifier; these runs, one for each seed, are the trials. The paper's
    five folds are one fold for each seed here, and its two rounds one. The ops are those of
    `image_ops.OPS`, with Identity in the place of the paper's Cutout.

    Nothing in the criterion asks for a change: a policy that never fires has a low loss too. Nor
    does it say how accurate a training will be, so a range of these hyperparameters cannot be
    searched by the validation accuracy of the training that finds the policy.
    """

    name: Literal["fast_autoaugment"] = "fast_autoaugment"
    samples: int = Field(200, ge=1, le=100_000)
    """Candidates."""
    num_policies: int = Field(5, ge=1, le=100)
    """Sub-policies of a candidate."""
    num_ops: int = Field(2, ge=1, le=10)
    """Steps of a sub-policy."""
    keep: int = Field(10, ge=1, le=1000)
    """Candidates whose sub-policies are merged."""
    images: int = Field(1000, ge=1, le=1_000_000)
    """Held-out images that a candidate is scored on; all on the same ones, with the same noise.
    Where there are fewer, they come again, augmented anew."""

    small: ClassVar[Mapping[str, Any]] = {"samples": 2, "num_policies": 2, "keep": 1}

    @model_validator(mode="after")
    def _can_propose(self) -> Self:
        if not self.sub_policies and importlib.util.find_spec("optuna") is None:
            raise ValueError(
                "fast_autoaugment proposes policies with Optuna, which is not installed: "
                "pip install 'autoaug_ray[search]'"
            )
        return self

    def probe(self) -> tuple[Self, float]:
        few = min(self.samples, TIMED)
        return self.model_copy(update={"samples": few}), self.samples / few

    @property
    def meta_fraction(self) -> float | None:
        return 0.4

    def init(self, task: Task, seed: int, device: torch.device) -> FastAutoAugmentState:
        nothing: tuple[SubPolicy, ...] = ((),)
        return FastAutoAugmentState(SubPolicies(self.sub_policies or nothing, self.weights))

    def finish(self, learner: Learner, next_meta: NextMeta, state: FastAutoAugmentState) -> None:
        import optuna  # only a search needs it

        meta = next_meta(self.images)
        images, labels = as_float(meta.images), meta.labels
        noise = learner.noise
        seed = int(torch.randint(2**31, (), generator=noise, device=noise.device))
        start = noise.get_state()

        def loss_of(policy: SubPolicies) -> float:
            noise.set_state(start)
            return _loss(learner, policy, images, labels)

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        tried = []
        with learner.evaluated():
            clean = loss_of(state.policy)
            if not math.isfinite(clean):
                raise RunError(
                    f"fast_autoaugment: the loss of the held-out images is {clean} after the "
                    f"training, so no policy can be scored; lower train.lr ({learner.training.lr})."
                )
            for _ in range(self.samples):
                trial = study.ask()
                policy = self._proposed(trial)
                loss = loss_of(policy)
                study.tell(trial, loss)
                tried.append((loss, policy))
        tried.sort(key=lambda candidate: candidate[0])
        best = tried[: self.keep]
        state.policy = SubPolicies(tuple(s for _, policy in best for s in policy.table))
        state.figures = {
            "meta_loss/clean": clean,
            "meta_loss/best": tried[0][0],
            "meta_loss/kept": best[-1][0],
            "meta_loss/median": tried[len(tried) // 2][0],
        }

    def found_hyperparameters(self, state: FastAutoAugmentState) -> dict[str, Any]:
        return {"sub_policies": state.policy.table}

    def end_epoch(self, state: FastAutoAugmentState) -> dict[str, float]:
        """Held-out losses: unaugmented; of the best, the last kept and the median candidate."""
        return state.figures

    def _proposed(self, trial: "optuna.Trial") -> SubPolicies:
        def step(where: str) -> Step:
            op = trial.suggest_categorical(f"op {where}", OPS)
            probability = trial.suggest_float(f"probability {where}", 0, 1)
            magnitude = trial.suggest_float(f"magnitude {where}", 0, 1)
            return op, round(probability, 3), round(magnitude, 3)

        return SubPolicies(
            tuple(
                tuple(step(f"{i}.{k}") for k in range(self.num_ops))
                for i in range(self.num_policies)
            )
        )


@torch.no_grad()
def _loss(learner: Learner, policy: SubPolicies, images: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy of the augmented images (n, C, H, W) in [0, 1]."""
    total: Any = 0.0
    for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        logits = learner.logits(policy(x, learner.noise))
        total += F.cross_entropy(logits, y, reduction="sum")
    return float(total) / len(images)
