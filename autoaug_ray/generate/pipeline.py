"""A Stable Diffusion, as edits (img2img) and inversion load it and encode images with it."""

from typing import Any

import torch
from diffusers import StableDiffusionImg2ImgPipeline
from torch import Tensor

from autoaug_ray.errors import UserError
from autoaug_ray.generate import weights
from autoaug_ray.generate.loading import loading
from autoaug_ray.generate.settings import Generation, Precision

Pipeline = Any
"""A StableDiffusionImg2ImgPipeline, whose parts have no types."""
ROWS = 16
"""Images per call of a network on a CPU; img2img says why it is fixed. The embedded model on one
core takes 137 ms per image with 1 row, 42 with 8, 38 with 16, 39 with 32, 33 with 64; but a call
for a few images computes all rows."""
NOISE_LEVELS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
    "prediction_type", "rescale_betas_zero_snr",
)  # fmt: skip
"""What the model was trained with. The rest of a checkpoint's scheduler is one way to sample."""
DTYPES: dict[Precision, torch.dtype] = {
    "fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip


def load(settings: Generation, device: torch.device) -> Pipeline:
    """The model in `settings.precision`, for inference. Raises UserError if it cannot be had."""
    source = weights.resolve(settings.model, "stable-diffusion")
    with loading("model", f"{settings.model} as a Stable Diffusion"):
        pipe = StableDiffusionImg2ImgPipeline.from_pretrained(
            source,
            dtype=DTYPES[settings.precision],
            safety_checker=None,
            requires_safety_checker=False,
            trust_remote_code=False,
        )
    for network in (pipe.unet, pipe.vae, pipe.text_encoder):
        network.requires_grad_(False).eval()
    return pipe.to(device)


def side(settings: Generation, pipe: Pipeline) -> int:
    """Pixels of the square that the model edits: `settings.size`, or what it was trained at."""
    factor: int = pipe.vae_scale_factor
    if settings.size is None:
        trained: int = pipe.unet.config.sample_size
        return trained * factor
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
