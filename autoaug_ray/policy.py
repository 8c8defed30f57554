"""A finished run -> a transform for anyone's own training loop.

`policy.pt` holds tensors and plain values only (it loads with weights_only=True); `policy.yaml`
says the same for people. Both stand in `policies/<label>/seed-<n>/` of a study.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from autoaug_ray import own_code
from autoaug_ray.errors import UserError
from autoaug_ray.maths import plans
from autoaug_ray.maths.strength import Motion
from autoaug_ray.methods import method_class
from autoaug_ray.methods.base import Method, Task
from autoaug_ray.store.files import load_state, save_state, write_whole
from autoaug_ray.store.places import Place, place
from autoaug_ray.targets import Kind, from_pil, kind_of, like, moved, to_pil

if TYPE_CHECKING:
    from autoaug_ray.config import Run

SCHEDULE_LENGTH = 20
"""States in an exported schedule, at most; evenly spaced over the epochs."""


class Policy(nn.Module):
    """What a method ended with, as a torchvision-v2-style transform.

    Takes one image (C, H, W) or a batch (B, C, H, W) of any size, uint8 or float in [0, 1], as a
    tensor, a tv_tensors.Image or a PIL image, and gives the same shape and type. What goes through
    with it, nested as it may be, is treated as torchvision's transforms do: masks, boxes and key
    points of one image go where its pixels go, several images draw the same, labels stay; of plain
    tensors, the first is the image if there is no other.

    Each image of a batch draws its own parameters, on its own device, from torch's global generator
    there. It has no parameters of its own: an optimiser finds nothing, and `.half()` or `.to()` of
    a model that holds it change nothing.

    Raises ValueError, in one sentence, for what it cannot serve.
    """

    def __init__(self, method: Method, task: Task, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.method, self.task = method, task
        made = method.start(task, seed=0, device=torch.device("cpu"))
        made.load_state_dict(dict(state), strict=False)
        self._state = (made.requires_grad_(False),)  # in a tuple, which torch does not look into
        self._generators: dict[torch.device, torch.Generator] = {}

    @property
    def state(self) -> Any:
        """The method's state, as `method.init` makes it."""
        return self._state[0]

    @property
    def alpha(self) -> Tensor | None:
        """Probabilities (classes, kinds) of `method.kinds`, if it mixes generated images.

        Which image of a bank stands for the real one is then the caller's to draw, by its label;
        this transform is what is done to either of them.
        """
        return self.method.alpha(self.state)

    def plan(self) -> list[plans.Stage]:
        """What it does to images of the training's size, as plain data; see `maths.plans`.

        Raises UserError, in one sentence, for a method of which that cannot be said.
        """
        return self.method.plan(self.state, self.task)

    def extra_repr(self) -> str:
        """The method, and a line for each thing that it does, in pixels, degrees and per cent."""
        c, h, w = self.task[:3]
        try:
            lines = [plans.in_words(stage) for stage in self.plan()] or ["nothing"]
        except UserError as error:
            lines = [str(error)]
        return "\n".join([f"{self.method.name}, on images ({c}, {h}, {w}):", *lines])

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        parts, tree = tree_flatten(inputs if len(inputs) != 1 else inputs[0])
        kinds = [kind_of(part) for part in parts]
        images = [i for i, kind in enumerate(kinds) if kind in ("image", "pil")]
        images = images or [i for i, kind in enumerate(kinds) if kind == "tensor"][:1]
        if not images:
            raise ValueError(
                "expected an image: a tensor, a tv_tensors.Image or a PIL image, got "
                f"{', '.join(type(part).__name__ for part in parts) or 'nothing'}"
            )
        with_image: list[Kind] = ["mask", "boxes", "points"]
        follows = [i for i, kind in enumerate(kinds) if kind in with_image]
        seed = int(torch.randint(2**62, ()))  # so that workers and seeds do their part
        motion = None
        for i in images:
            parts[i], found = self._one(parts[i], kinds[i], seed, bool(follows))
            motion = motion or found
        for i in follows:
            assert motion is not None
            parts[i] = moved(parts[i], kinds[i], motion)
        return tree_unflatten(parts, tree)

    def _one(self, image: Any, kind: Kind, seed: int, followed: bool) -> tuple[Any, Motion | None]:
        """An image augmented, in the type that it came in, and where its pixels went if masks or
        boxes must follow."""
        pixels = from_pil(image) if kind == "pil" else image
        self._check(pixels, followed)
        batch = pixels if pixels.ndim == 4 else pixels[None]
        if not len(batch):
            return image, None
        x = batch.float() / 255 if pixels.dtype == torch.uint8 else batch.float()
        motion = Motion(x) if followed else None
        generator = self._generators.setdefault(x.device, torch.Generator(x.device))
        state = self.state.to(x.device)
        out = self.method.augment(state, x, generator.manual_seed(seed), motion)
        if pixels.dtype == torch.uint8:
            out = (out * 255).round()
        out = out.to(pixels.dtype).view_as(pixels)
        if kind == "pil":
            return to_pil(out), motion
        return (like(out, image) if kind == "image" else out), motion

    def _check(self, pixels: Tensor, followed: bool) -> None:
        channels = self.task.channels
        if pixels.ndim not in (3, 4) or pixels.shape[-3] != channels or not all(pixels.shape[-2:]):
            raise ValueError(
                f"expected ({channels}, H, W) or (B, {channels}, H, W) as "
                f"in training, got {tuple(pixels.shape)}"
            )
        if pixels.dtype != torch.uint8:
            if not pixels.is_floating_point():
                raise ValueError(
                    f"expected images of uint8, or of float in [0, 1], got {pixels.dtype}"
                )
            low, high = (float(v) for v in pixels.aminmax()) if pixels.numel() else (0.0, 1.0)
            if not (low >= -1e-3 and high <= 1 + 1e-3):  # also if they are no numbers
                raise ValueError(
                    f"expected float images in [0, 1], got values from {low:g} to {high:g}; a "
                    "policy stands after ToDtype(torch.float32, scale=True) and before Normalize"
                )
        if followed and pixels.ndim == 4:
            raise ValueError(
                "boxes, masks and key points go with one image (C, H, W), not with a batch "
                f"{tuple(pixels.shape)}"
            )
        if followed and own_code.is_own(self.method.name):
            raise ValueError(
                f"{self.method.name} is a method of a user's own, which does not say where pixels "
                "go, so that boxes, masks and key points cannot follow"
            )


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
    run: "Run",
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
    import yaml  # not above: whoever loads a policy does not need it

    text = yaml.safe_dump(
        {"label": run.label, "seed": run.seed, "image": task._asdict(), **summary,
         **({"left_out": method.left_out} if method.left_out else {}),
         "method": json.loads(method.model_dump_json())},
        sort_keys=False,
    )  # fmt: skip
    write_whole(folder / "policy.yaml", text.encode())
