"""A finished run -> a transform for anyone's own training loop.

`policy.pt` holds tensors and plain values only (it loads with weights_only=True); `policy.yaml`
says the same for people. Both stand in `policies/<label>/seed-<n>/` of a study.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from autoaug_ray import own_code
from autoaug_ray.config import Run
from autoaug_ray.errors import UserError
from autoaug_ray.methods import method_class
from autoaug_ray.methods.base import Method, Task
from autoaug_ray.store.folder import load_state, save_state, write_whole
from autoaug_ray.store.places import Place, place

SCHEDULE_LENGTH = 20
"""States in an exported schedule, at most; evenly spaced over the epochs."""


class Policy(nn.Module):
    """What a method ended with, as a torchvision-v2-style transform.

    Takes one image (C, H, W) or a batch (B, C, H, W), uint8 or float in [0, 1], of any size, and
    gives the same shape and type; further arguments (labels) go through unchanged. Each image of a
    batch draws its own parameters, on its own device, from torch's global generator there.
    """

    def __init__(self, method: Method, task: Task, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.method, self.task = method, task
        self.state: Any = method.start(task, seed=0, device=torch.device("cpu"))
        self.state.load_state_dict(dict(state), strict=False)
        self._generators: dict[torch.device, torch.Generator] = {}

    @property
    def alpha(self) -> Tensor | None:
        """Probabilities (classes, kinds) of `method.kinds`, if it mixes generated images.

        Which image of a bank stands for the real one is then the caller's to draw, by its label;
        this transform is what is done to either of them.
        """
        return self.method.alpha(self.state)

    @torch.no_grad()
    def forward(self, image: Tensor, *rest: Any) -> Any:
        if image.ndim not in (3, 4) or image.shape[-3] != self.task.channels:
            raise ValueError(
                f"expected ({self.task.channels}, H, W) or (B, {self.task.channels}, H, W) as "
                f"in training, got {tuple(image.shape)}"
            )
        batch = image if image.ndim == 4 else image[None]
        x = batch.float() / 255 if image.dtype == torch.uint8 else batch.float()
        out = self.method.augment(self.state.to(image.device), x, self._generator(image.device))
        if image.dtype == torch.uint8:
            out = (out * 255).round()
        out = out.to(image.dtype).view_as(image)
        return (out, *rest) if rest else out

    def _generator(self, device: torch.device) -> torch.Generator:
        # Seeded from the global generator at every call, so that workers and seeds do their part.
        seed = int(torch.randint(2**62, ()))
        generator = self._generators.setdefault(device, torch.Generator(device))
        return generator.manual_seed(seed)


def load_policy(path: str | Path, code: str | Path | None = None) -> Policy:
    """Read a `policy.pt`. Raises UserError if the file is not one, and warns of what of its method
    no transform of single images can do.

    A policy of a user's own method holds no code: `code` is the file that defines the method, or
    the name of its module. It is imported if it is what trained the policy, and refused if not.
    """
    try:
        saved = load_state(place(path))
        name = json.loads(saved["method"])["name"]
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; a policy.pt of a finished run is needed."
        ) from None
    except Exception as error:
        raise UserError(f"{path} is not a policy of autoaug_ray ({error}).") from None
    if own_code.is_own(name):
        if code is None and not own_code.is_known(name):
            raise UserError(
                f"{path} was made by a method of a user's own: give load_policy the file that "
                f"defines it, code={name.rpartition(':')[0]!r}, which then runs."
            )
        if code is not None:
            is_file = str(code).endswith(".py")
            own_code.locate(name, str(Path(code).resolve()) if is_file else str(code))
        method_class(name)  # its own sentence, if the code is not what it was
    try:
        method = method_class(name).model_validate_json(saved["method"])
        policy = Policy(method, task_of(saved["shape"]), saved["state"])
    except Exception as error:
        raise UserError(f"{path} is not a policy of autoaug_ray ({error}).") from None
    if method.left_out:
        warnings.warn(f"{path}, of {name}, lacks {method.left_out}.", stacklevel=2)
    return policy


def task_of(shape: Sequence[Any]) -> Task:
    """[channels, height, width, [images of each class], [mean of each channel]], as checkpoints and
    policies hold it; those of earlier versions lack the last, which only a cutout needs."""
    channels, height, width, counts, *mean = shape
    return Task(channels, height, width, tuple(counts), tuple(mean[0]) if mean else ())


def tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The part of a method's state that augments; not its optimiser."""
    return {k: v.detach().cpu().clone() for k, v in state.items() if isinstance(v, Tensor)}


def in_schedule(epoch: int, epochs: int) -> bool:
    """Whether the state after this epoch belongs to the exported schedule."""
    step = max(1, round(epochs / SCHEDULE_LENGTH))
    return epoch % step == 0 or epoch == epochs


def export(
    folder: Place,
    run: Run,
    task: Task,
    state: Mapping[str, Any],
    schedule: list[tuple[float, dict[str, Tensor]]],
    summary: Mapping[str, Any],
) -> None:
    """`schedule`: (progress at which it begins, tensors of the state), in order; may be empty."""
    method: Method = run.method
    save_state(
        folder / "policy.pt",
        {
            "method": method.model_dump_json(),
            "shape": task.plain(),
            "state": tensors(state),
            "schedule": [[start, tensors] for start, tensors in schedule],
        },
    )
    text = yaml.safe_dump(
        {"label": run.label, "seed": run.seed, "image": task._asdict(), **summary,
         **({"left_out": method.left_out} if method.left_out else {}),
         "method": json.loads(method.model_dump_json())},
        sort_keys=False,
    )  # fmt: skip
    write_whole(folder / "policy.yaml", text.encode())
