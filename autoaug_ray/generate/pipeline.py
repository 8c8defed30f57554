"""Pipelines of diffusers that edit an image, as edits and textual inversion load and use them."""

from typing import Any

import torch
from diffusers import AutoPipelineForImage2Image, StableDiffusionImg2ImgPipeline
from torch import Tensor, nn

from autoaug_ray.errors import UserError
from autoaug_ray.generate import weights
from autoaug_ray.generate.settings import Generation, Precision
from autoaug_ray.models.loading import loading

Pipeline = Any
"""An image-to-image pipeline of diffusers, whose parts have no types."""
ROWS = 16
"""Images per call of a network on a CPU; img2img says why it is fixed. The embedded model on one
core takes 137 ms per image with 1 row, 42 with 8, 38 with 16, 39 with 32, 33 with 64; but a call
for a few images computes all rows."""
NOISE_LEVELS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
    "prediction_type", "rescale_betas_zero_snr",
)  # fmt: skip
"""What the model was trained with. The rest of a checkpoint's scheduler is one way to sample."""
UNCHECKED = {"safety_checker": None, "requires_safety_checker": False}
"""Stable Diffusion's checker would blacken images and take memory; other pipelines have none."""
DTYPES: dict[Precision, torch.dtype] = {
    "fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip


def load(settings: Generation, device: torch.device) -> Pipeline:
    """The model in `settings.precision`, for inference. Raises UserError if it cannot be had."""
    source = weights.resolve(settings.model, "stable-diffusion")
    with loading("generate.model", f"{settings.model} as an image-to-image pipeline"):
        kind = AutoPipelineForImage2Image.load_config(source)["_class_name"]
        checked = kind in ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
        pipe = AutoPipelineForImage2Image.from_pretrained(
            source,
            dtype=DTYPES[settings.precision],
            trust_remote_code=False,
            **(UNCHECKED if checked else {}),
        )
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    return pipe.to(device)


def stable_diffusion(settings: Generation, device: torch.device, field: str) -> Pipeline:
    """`load`, of a Stable Diffusion, with one UNet and one text encoder.

    Raises UserError, which begins with the `field` of `generate:` that needs one, for others.
    """
    pipe = load(settings, device)
    if type(pipe) is not StableDiffusionImg2ImgPipeline:
        raise UserError(
            f"generate.{field} is for Stable Diffusion, and {settings.model} is a "
            f"{type(pipe).__name__}; use solver: own, without tokens."
        )
    return pipe


def side(settings: Generation, pipe: Pipeline) -> int:
    """Pixels of the square that the model edits: `settings.size`, or what it was trained at."""
    factor: int = getattr(pipe, "vae_scale_factor", 1)
    if settings.size is None:
        network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
        trained = getattr(pipe, "default_sample_size", None)
        trained = trained or getattr(getattr(network, "config", None), "sample_size", None)
        if not isinstance(trained, int):
            raise UserError(
                f"generate.size must be given for {settings.model}: a {type(pipe).__name__} does "
                "not say which size it was trained at."
            )
        return trained * factor
    # FLUX and SD3 put latents together to patches.
    patches = factor * int(getattr(pipe, "patch_size", 1))
    factor = max(patches, int(pipe.image_processor.config.vae_scale_factor))
    if settings.size % factor:
        raise UserError(
            f"generate.size must be a multiple of {factor} for {settings.model}, "
            f"got {settings.size}."
        )
    return settings.size


def noise_levels(pipe: Pipeline) -> dict[str, Any]:
    """Arguments for any of diffusers' schedulers."""
    config = pipe.scheduler.config
    return {key: config[key] for key in NOISE_LEVELS if key in config}


def encode(pipe: Pipeline, images: Tensor) -> Tensor:
    """(n, 3, side, side) in [0, 1] -> latents (n, 4, h, w) float32, scaled as the UNet's are."""
    vae = pipe.vae
    x = (2 * images - 1).to(pipe.device, vae.dtype)
    if x.is_cuda:
        x = x.to(memory_format=torch.channels_last)
    latents: Tensor = vae.encode(x).latent_dist.mode().float() * vae.config.scaling_factor
    return latents
