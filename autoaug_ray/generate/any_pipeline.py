"""Edits by any image-to-image pipeline of diffusers, in its own way: SDXL, SD-Turbo, SD3, FLUX.

Each family has its own text encoders, noise and schedule, and only its own `__call__` knows how
they go together. `strength` and `calls` are therefore what the pipeline takes them for: of a
schedule of `calls` steps the last `calls * strength` are run. What holds for img2img holds here: an
image depends on its job, the settings and the weights. A generator per job draws all of its noise,
on the CPU, and on a CPU every call has ROWS rows.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autoaug_ray.errors import UserError
from autoaug_ray.generate import inversion, pipeline, resize
from autoaug_ray.generate.img2img import Edited, Job, calls_of, finish
from autoaug_ray.generate.pipeline import ROWS, Pipeline
from autoaug_ray.generate.settings import Generation
from autoaug_ray.store.places import Place

NEEDED = ("prompt", "image", "strength", "num_inference_steps", "generator", "output_type")
"""Arguments without which a pipeline cannot make these edits. Those that edit by instruction
(FLUX Kontext, Qwen-Image-Edit) know no strength."""


class PipelineEditor:
    """An image-to-image pipeline on one device, as `img2img.Editor` is one for Stable Diffusion."""

    def __init__(
        self,
        settings: Generation,
        *,
        device: torch.device,
        batch_size: int,
        compile: bool = False,
        tokens: Sequence[Place] = (),
    ) -> None:
        """`tokens`: files of `inversion.save`. Raises UserError for what cannot work."""
        self._settings = settings
        self._pipe = pipe = pipeline.load(settings, device)
        self._taken = inspect.signature(pipe.__call__).parameters
        _check(settings, pipe, self._taken)
        self.side = pipeline.side(settings, pipe)
        self.rows = ROWS if device.type == "cpu" else batch_size
        inversion.add_learned(pipe, tokens)
        if getattr(pipe, "watermark", None) is not None:  # SDXL would draw it into every image
            pipe.watermark = None
        pipe.set_progress_bar_config(disable=True)
        network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
        if compile and network is not None:
            network.compile()

    def count_tokens(self, text: str) -> int:
        """How many tokens the text has for the pipeline's first text encoder, with start and end.

        That is a CLIP in all families known here: it reads 77 and drops what follows.
        """
        pipe = self._pipe
        if hasattr(pipe, "maybe_convert_prompt"):
            text = pipe.maybe_convert_prompt(text, _tokenizer(pipe))
        return len(_tokenizer(pipe)(text).input_ids)

    def edit(self, jobs: Sequence[Job]) -> list[Edited]:
        """One edited image per job, in their order."""
        edited: list[Edited] = []
        # A caller's autocast would change what is made.
        with torch.inference_mode(), torch.autocast(self._pipe.device.type, enabled=False):
            for some, filled in calls_of(jobs, self.rows):
                images = self._call(filled).float().cpu()
                edited += [finish(x, job.image) for x, job in zip(images, some, strict=False)]
        return edited

    def _call(self, jobs: Sequence[Job]) -> Tensor:
        """Edited images (n, 3, side, side) in [0, 1], or not finite."""
        settings = self._settings
        x = torch.cat([resize.enlarge(job.image[None] / 255, self.side) for job in jobs])
        arguments: dict[str, Any] = {
            "prompt": [job.prompt for job in jobs], "image": x, "strength": settings.strength,
            "num_inference_steps": settings.calls, "guidance_scale": settings.guidance,
            "generator": [torch.Generator().manual_seed(job.seed) for job in jobs],
            "height": self.side, "width": self.side, "output_type": "pt",
        }  # fmt: skip
        taken = {name: value for name, value in arguments.items() if name in self._taken}
        images: Tensor = self._pipe(**taken).images
        return images


def _check(settings: Generation, pipe: Pipeline, taken: Any) -> None:
    """Raises UserError for a pipeline that takes no strength, and for a schedule of no steps."""
    lacking = [name for name in NEEDED if name not in taken]
    if lacking or _tokenizer(pipe) is None:
        raise UserError(
            f"generate.model: {settings.model} is a {type(pipe).__name__}, which takes no "
            f"{lacking[0] if lacking else 'text'}; edits need a pipeline that noises an image to a "
            "strength and denoises it towards a prompt."
        )
    if int(settings.calls * settings.strength) < 1:
        raise UserError(
            f"generate.calls: solver own runs int(calls * strength) steps, which is 0 for "
            f"{settings.calls} and {settings.strength}."
        )


def _tokenizer(pipe: Pipeline) -> Any:
    """The tokenizer of the first text encoder that the checkpoint has; None if it has none."""
    names = ("tokenizer", "tokenizer_2", "tokenizer_3")
    return next((t for name in names if (t := getattr(pipe, name, None)) is not None), None)
