"""Training again from a schedule that a bilevel run learned, at the cost of plain training."""

import hashlib
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from autoaug_ray.data import Split
from autoaug_ray.errors import UserError
from autoaug_ray.learner import Learner
from autoaug_ray.maths import plans
from autoaug_ray.maths.augmenter import parameter_names
from autoaug_ray.maths.strength import Strength
from autoaug_ray.methods.base import Method, NextMeta, Task
from autoaug_ray.methods.bilevel import Bilevel
from autoaug_ray.methods.bilevel_state import BilevelState
from autoaug_ray.store.files import reading, state_of
from autoaug_ray.store.places import Place, place


class ReplayState(nn.Module):
    """The augmenter and the states that it goes through, by the learner's progress."""

    def __init__(
        self,
        method: Bilevel,
        learned: BilevelState,
        schedule: list[tuple[float, dict[str, Tensor]]],
    ) -> None:
        super().__init__()
        self.method, self.schedule = method, schedule
        self.augmenter, self.flip = learned.augmenter, learned.flip
        self.go_to(0.0)

    def go_to(self, progress: float) -> None:
        started = [state for start, state in self.schedule if start <= progress]
        now = (started or [self.schedule[0][1]])[-1]
        names = self.state_dict()
        self.load_state_dict({k: v for k, v in now.items() if k in names})


class Replay(Method):
    """The augmentation schedule of an earlier bilevel run, stretched to this run's length.

    It needs no meta images and no hypergradient. What the schedule cost to find is its search.

    Parameters have no pixels in them: translation is a share of the image's side, so that 6 of 28
    pixels become 6.9 of 32. Images may be of another size, and of other channels if the group has
    the same parameters for both, as the geometric ones have.
    """

    name: Literal["replay"] = "replay"
    of: str | None = None
    """A bilevel entry: LABEL, of the same study, or STUDY/LABEL or STUDY/CASE/LABEL, of one that
    has run in the same folder. Each seed replays the schedule of its own."""
    policy: str | None = None
    """Path of the policy.pt of any bilevel run, instead of `of`."""
    content: str | None = None
    """SHA-256 of that file in hex, which the study fills in: another content is another run."""

    found_names: ClassVar[tuple[str, ...]] = ("policy", "content")
    found_per_seed: ClassVar[tuple[str, ...]] = found_names
    places: ClassVar[tuple[str, ...]] = ("policy",)

    @property
    def timed_as_reference(self) -> bool:
        return True

    @property
    def follows(self) -> str | None:
        return self.of

    def check_source(self, source: Method) -> None:
        if not isinstance(source, Bilevel):
            raise ValueError(f"of: {self.of!r} is {source.name}; a replay needs a bilevel entry")
        if source.edits:
            raise ValueError(
                f"of: {self.of!r} mixes generated images (edits), which a replay does not"
            )

    def pinned(self) -> Self:
        if self.policy is None or not (path := place(self.policy)).is_file():
            return self  # `init` says that it is not there
        return self.model_copy(update={"content": digest(path.read_bytes())})

    def init(self, task: Task, seed: int, device: torch.device) -> ReplayState:
        path = place(self.policy or "")
        if not path.is_file():
            raise UserError(f"replay.policy: {self.policy} is no file; give a bilevel policy.pt.")
        data = path.read_bytes()
        if self.content not in (None, digest(data)):
            raise UserError(
                f"replay.policy: {path} is not what it was when this run was planned; --resume "
                "trains with what it is now."
            )
        method, channels, schedule = read(path, data, device)
        there, here = (parameter_names(method.group, n) for n in (channels, task.channels))
        if there != here:
            raise UserError(
                f"replay.policy: {path} was learned on images of {channels} channel(s), these have "
                f"{task.channels}, for which group: {method.group} has other parameters."
            )
        return ReplayState(method, method.init(task, seed, device), schedule)

    def augment(
        self,
        state: Any,
        images: Tensor,
        noise: torch.Generator,
        strength: Strength | None = None,
    ) -> Tensor:
        method: Bilevel = state.method
        return method.augment(state, images, noise, strength)

    def plan(self, state: Any, task: Task) -> list[plans.Stage]:
        return state.method.plan(state, task)  # type: ignore[no-any-return]

    def step(
        self, learner: Learner, batch: Split, next_meta: NextMeta, state: Any
    ) -> dict[str, Tensor]:
        state.go_to(learner.progress)
        return super().step(learner, batch, next_meta, state)


def read(
    path: Place, data: bytes, device: torch.device
) -> tuple[Bilevel, int, list[tuple[float, dict[str, Tensor]]]]:
    """The method of a policy.pt, its images' number of channels, and its schedule.

    Raises UserError for the policy of another method.
    """
    with reading(path, "run the study that learned it again"):
        saved = state_of(data)
    try:
        method = Bilevel.model_validate_json(saved["method"])
    except ValidationError:
        raise UserError(f"replay.policy: {path} is no policy of a bilevel run.") from None
    schedule = [
        (start, {name: tensor.to(device) for name, tensor in state.items()})
        for start, state in saved["schedule"]
    ]
    return method, saved["shape"][0], schedule


def digest(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()
