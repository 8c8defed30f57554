"""Training again from a schedule that a bilevel run learned, at the cost of plain training."""

import io
from typing import Any, ClassVar, Literal

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from autoaug_ray.data import Split
from autoaug_ray.errors import UserError
from autoaug_ray.learner import Learner
from autoaug_ray.maths.augmenter import AbstractAugmenter
from autoaug_ray.maths.strength import Strength
from autoaug_ray.methods.base import Method, NextMeta, Task
from autoaug_ray.methods.bilevel import Bilevel
from autoaug_ray.store.places import place


class ReplayState(nn.Module):
    """The augmenter, and the states that it goes through; follows from the learner's progress."""

    def __init__(
        self,
        method: Bilevel,
        augmenter: AbstractAugmenter,
        schedule: list[tuple[float, dict[str, Tensor]]],
    ) -> None:
        super().__init__()
        self.method, self.augmenter, self.schedule = method, augmenter, schedule
        self.go_to(0.0)

    def go_to(self, progress: float) -> None:
        started = [state for start, state in self.schedule if start <= progress]
        prefix = "augmenter."
        self.augmenter.load_state_dict(
            {
                k.removeprefix(prefix): v
                for k, v in (started or [self.schedule[0][1]])[-1].items()
                if k.startswith(prefix)
            }
        )


class Replay(Method):
    """The augmentation schedule of an earlier bilevel run, stretched to this run's length.

    It needs no meta images and no hypergradient. What the schedule cost to find is its search.
    """

    name: Literal["replay"] = "replay"
    of: str | None = None
    """Label of a bilevel entry of the same study: each seed replays the schedule of its own."""
    policy: str | None = None
    """Or the path of the policy.pt of any bilevel run."""

    found_names: ClassVar[tuple[str, ...]] = ("policy",)
    found_per_seed: ClassVar[tuple[str, ...]] = found_names
    timed_as_reference: ClassVar[bool] = True

    @property
    def follows(self) -> str | None:
        return self.of

    def init(self, task: Task, seed: int, device: torch.device) -> ReplayState:
        path = place(self.policy or "")
        if not path.is_file():
            raise UserError(f"replay.policy: {self.policy} is no file; give a bilevel policy.pt.")
        saved = torch.load(io.BytesIO(path.read_bytes()), map_location=device, weights_only=True)
        method = TypeAdapter(Bilevel).validate_json(saved["method"])
        if task.channels != saved["shape"][0]:
            raise UserError(
                f"replay.policy: {path} was learned on images of {saved['shape'][0]} channel(s), "
                f"these have {task.channels}."
            )
        augmenter = method.init(task, seed, device).augmenter
        return ReplayState(method, augmenter, [(start, t) for start, t in saved["schedule"]])

    def augment(
        self,
        state: Any,
        images: Tensor,
        noise: torch.Generator,
        strength: Strength | None = None,
    ) -> Tensor:
        method: Bilevel = state.method
        return method.augment(state, images, noise, strength)

    def step(
        self, learner: Learner, batch: Split, next_meta: NextMeta, state: Any
    ) -> dict[str, Tensor]:
        state.go_to(learner.progress)
        return super().step(learner, batch, next_meta, state)
