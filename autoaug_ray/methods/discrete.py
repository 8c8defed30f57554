"""The search-free and population-based policies over AutoAugment's ops, one draw per sample."""

import abc
import random
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from autoaug_ray.data import Split
from autoaug_ray.learner import Learner
from autoaug_ray.maths import plans, policies
from autoaug_ray.maths.strength import Strength
from autoaug_ray.methods.base import NextMeta, PopulationSearch, Stateless, Task
from autoaug_ray.methods.stage import Staged

Policy = Callable[[Tensor, torch.Generator, Strength | None], Tensor]


class _Discrete(Staged, abc.ABC):
    """A policy without gradients."""

    @abc.abstractmethod
    def policy_of(self, state: Any) -> Policy: ...

    def transform(
        self, state: Any, images: Tensor, noise: torch.Generator, strength: Strength | None = None
    ) -> Tensor:
        return self.policy_of(state)(images, noise, strength)

    def transform_plan(self, state: Any, task: Task) -> list[plans.Stage]:
        return [plans.of_policy(self.policy_of(state), task.size)]


class RandAugment(_Discrete):
    """Cubuk et al. 2020: `num_ops` random ops at one magnitude; its N x M grid is its search."""

    name: Literal["randaugment"] = "randaugment"
    num_ops: int = Field(2, ge=0, le=10)
    """Ops of an image, one after the other."""
    magnitude: int = Field(9, ge=0, le=30)
    """Bin of 31, as in torchvision; 9 is its default."""

    def policy_of(self, state: Any) -> Policy:
        return policies.RandAugment(self.num_ops, self.magnitude)


class TrivialAugment(_Discrete):
    """Mueller and Hutter 2021, the wide space: one random op at a random magnitude."""

    name: Literal["trivialaugment"] = "trivialaugment"
    nothing_to_tune: ClassVar[bool] = True

    def policy_of(self, state: Any) -> Policy:
        return policies.TrivialAugmentWide()


class AutoAugment(_Discrete):
    """Cubuk et al. 2019: the published sub-policies, one drawn per sample."""

    name: Literal["autoaugment"] = "autoaugment"
    table: Literal["cifar10", "imagenet", "svhn"] = "cifar10"
    """The dataset on which the sub-policies were found."""

    def policy_of(self, state: Any) -> Policy:
        return policies.SubPolicies(published_table(self.table), num_bins=10)


@lru_cache
def published_table(name: str) -> tuple[policies.SubPolicy, ...]:
    """AutoAugment's 25 sub-policies for a data set; their levels are bins of 10."""
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy  # slow to import

    return tuple(AutoAugment(AutoAugmentPolicy(name)).policies)


class SubPolicyState(Stateless):
    """The sub-policies in force."""

    def __init__(self, policy: policies.SubPolicies) -> None:
        super().__init__()
        self.policy = policy


class Searched(_Discrete, abc.ABC):
    """Sub-policies that a training of their own finds, one of them drawn per sample."""

    sub_policies: tuple[policies.SubPolicy, ...] | None = None
    """Sub-policies, each of some steps [op, probability, magnitude] with numbers in [0, 1]; None: a
    training of their own finds them first, for each seed."""
    weights: tuple[float, ...] = ()
    """Chances of the sub-policies to be drawn, up to a factor; empty: all alike."""
    found_names: ClassVar[tuple[str, ...]] = ("sub_policies", "weights")
    found_per_seed: ClassVar[tuple[str, ...]] = found_names

    def model_post_init(self, context: Any) -> None:
        if self.sub_policies is not None:
            policies.SubPolicies(self.sub_policies, self.weights)
        elif self.weights:
            raise ValueError("weights are those of sub_policies, which are not given")

    @property
    def searches_in_own_run(self) -> bool:
        return self.sub_policies is None

    def found_lines(self) -> list[str]:
        table = self.sub_policies or ()
        ranked = sorted(
            zip(self.weights or [None] * len(table), table, strict=True),
            key=lambda pair: -(pair[0] or 0),
        )
        return [("" if w is None else f"{w:.3f}: ") + _in_words(steps) for w, steps in ranked]

    def policy_of(self, state: Any) -> Policy:
        return state.policy  # type: ignore[no-any-return]


def _in_words(steps: policies.SubPolicy) -> str:
    return ", then ".join(
        " ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in step) for step in steps
    )


class PopulationState(Stateless):
    """Which of the schedule's policies is in force; follows from the learner's progress."""

    policy: Tensor  # (60,) integers, on the CPU: what is exported is what training ended with

    def __init__(self, policy: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("policy", torch.tensor(policy))


def explore(policy: tuple[int, ...], rng: random.Random) -> tuple[int, ...]:
    """Perturb a policy as PBA does: each integer is drawn anew with probability 0.2, else moves by
    0..3."""
    out = []
    for i, value in enumerate(policy):
        top = 10 if i % 2 == 0 else 9
        if rng.random() < 0.2:
            out.append(rng.randint(0, top))
        else:
            out.append(min(max(value + rng.choice((-1, 1)) * rng.randint(0, 3), 0), top))
    return tuple(out)


class PopulationBased(_Discrete):
    """PBA (Ho et al. 2019): a schedule of policies found by population based training.

    A member of the population trains with `policy`, which the scheduler may change on the way; the
    final training replays the winner's lineage, `schedule`, stretched to its own length.
    """

    name: Literal["pba"] = "pba"
    population: int = Field(16, ge=2, le=1024)
    """Trials that train side by side."""
    perturb_every: int = Field(3, ge=1)
    """Epochs between two rounds of exploit and explore."""
    policy: tuple[int, ...] = (0,) * 60
    """15 ops, each twice, each (probability 0..10, magnitude 0..9)."""
    schedule: tuple[tuple[float, tuple[int, ...]], ...] = ()
    """(progress in [0, 1) from which it is in force, policy), in order; empty: `policy` alone."""

    found_names: ClassVar[tuple[str, ...]] = ("policy", "schedule")
    found_per_seed: ClassVar[tuple[str, ...]] = ("policy",)
    population_search: ClassVar[PopulationSearch | None] = PopulationSearch(
        "population", "perturb_every", gene="policy", lineage="schedule", perturb=explore
    )
    small: ClassVar[Mapping[str, Any]] = {"population": 2, "perturb_every": 1}

    def model_post_init(self, context: Any) -> None:
        for policy in (self.policy, *(p for _, p in self.schedule)):
            policies.PopulationPolicy(policy)

    def init(self, task: Task, seed: int, device: torch.device) -> PopulationState:
        return PopulationState(self._at(0.0))

    def _at(self, progress: float) -> tuple[int, ...]:
        started = [policy for start, policy in self.schedule if start <= progress]
        return started[-1] if started else self.policy

    def policy_of(self, state: PopulationState) -> Policy:
        return policies.PopulationPolicy(tuple(state.policy.tolist()))

    def step(
        self, learner: Learner, batch: Split, next_meta: NextMeta, state: PopulationState
    ) -> dict[str, Tensor]:
        state.policy.copy_(torch.tensor(self._at(learner.progress)))
        return super().step(learner, batch, next_meta, state)
