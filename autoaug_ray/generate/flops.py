"""Arithmetic of generation: what an edit costs before one is made.

FLOP are counted on the model itself, built from its configs on the meta device: no weights and,
for Stable Diffusion v1.4, no network are needed. A multiply-add is 2 FLOP.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from autoaug_ray.errors import UserError
from autoaug_ray.generate import weights
from autoaug_ray.generate.bank_files import LOSSLESS
from autoaug_ray.generate.settings import Generation
from autoaug_ray.models import parameter_count
from autoaug_ray.models.loading import loading

SD14 = "CompVis/stable-diffusion-v1-4"
SD14_CONFIGS: Mapping[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 64, "layers_per_block": 2, "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        "cross_attention_dim": 768, "attention_head_dim": 8,
    },
    "vae": {
        "sample_size": 512, "layers_per_block": 2, "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4, "latent_channels": 4,
    },
    "text_encoder": {
        "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77,
    },
}  # fmt: skip
"""The public configs of SD14, as far as work depends on them."""


PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "RTX 3090": 71.2, "L4": 121.0, "T4": 65.0}
"""The maker's TFLOP/s, dense, bf16 or fp16, by a part of the device's name."""


class Device(NamedTuple):
    """The peak of a device in TFLOP/s, and the share of it that a UNet gets."""

    peak: float
    batched: float
    """The share in batches, compiled."""
    single: float
    """The share with one image per call, as it comes."""


DEVICES: Mapping[str, Device] = {
    "H100": Device(PEAKS["H100"], 0.38, 0.15),
    "A100": Device(PEAKS["A100"], 0.38, 0.11),
    "RTX 3090": Device(PEAKS["RTX 3090"], 0.70, 0.50),
}
"""The shares are assumptions until one is measured. A100 and 3090: it/s of img2img with Stable
Diffusion v1.5 at 512 pixels in diffusers' "PyTorch 2.0" page, batch 16 compiled and batch 1, times
1.607 TFLOP. H100: nothing is public for batches, the A100's is taken; for one image, 572 ms of 50
steps by ONNX Runtime (pull request 22834)."""

BYTES_PER_VALUE = {"png": 0.65, "jpeg": 0.16}
"""Bytes per pixel and channel of Fashion-MNIST as PNG, and of photos of 512 pixels as JPEG (quality
95, 4:4:4)."""


@dataclass(frozen=True)
class Work:
    """GFLOP of each part for one image, and parameters."""

    side: int  # pixels
    unet: float  # one call without guidance; guidance doubles it
    encode: float
    decode: float
    text: float  # of one prompt
    parameters: int  # of all parts


def of_model(settings: Generation) -> Work:
    """The work of the model that the settings name, at their size.

    Raises UserError if the model's configs cannot be had, and for solver own: pipelines differ in
    what they call and how often.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    if settings.solver == "own":
        raise UserError("generate.solver: the work of solver own cannot be counted beforehand.")
    found = _configs(settings)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(found["unet"])
        vae = AutoencoderKL.from_config(found["vae"])
        text = CLIPTextModel(CLIPTextConfig(**found["text_encoder"]))
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        side = settings.size or unet.config.sample_size * factor
        latents = torch.zeros(1, vae.config.latent_channels, side // factor, side // factor)
        tokens = torch.zeros(1, text.config.max_position_embeddings, dtype=torch.int64)
        embeddings = torch.zeros(*tokens.shape, unet.config.cross_attention_dim)
        image = torch.zeros(1, 3, side, side)
        return Work(
            side,
            unet=_gflop(lambda: unet(latents, 0, encoder_hidden_states=embeddings)),
            encode=_gflop(lambda: vae.encode(image)),
            decode=_gflop(lambda: vae.decode(latents)),
            text=_gflop(lambda: text(tokens)),
            parameters=sum(parameter_count(part) for part in (unet, vae, text)),
        )


def unet_calls(settings: Generation) -> int:
    """How often one edit calls the UNet (with guidance, on two rows per image).

    PNDM's schedule has one timestep twice, and diffusers' img2img keeps it.
    """
    if settings.solver == "pndm":
        return int(settings.calls * settings.strength) + 1
    return settings.calls


class Forecast(NamedTuple):
    images: int
    tflop_per_image: float
    eflop: float
    device_hours: float
    gigabytes: float


def forecast(
    settings: Generation,
    images: int,
    device: Device,
    *,
    sources: int | None = None,
    prompts: int | None = None,
    work: Work | None = None,
    batched: bool = True,
    shape: tuple[int, int, int] | None = None,
) -> Forecast:
    """What `images` edits of so many `sources` by so many `prompts` cost (None: all differ).

    `work`: `of_model(settings)`, if at hand. `shape`: (C, H, W) of a stored image; None: what the
    model makes.
    """
    work = of_model(settings) if work is None else work
    guided = settings.guidance > 1
    sources, prompts = (images if n is None else n for n in (sources, prompts))
    once = sources * work.encode + prompts * work.text
    each = unet_calls(settings) * (2 if guided else 1) * work.unet + work.decode
    gflop = images * each + once
    share = device.batched if batched else device.single
    shape = (3, work.side, work.side) if shape is None else shape
    per_value = BYTES_PER_VALUE["png" if max(shape[1:]) <= LOSSLESS else "jpeg"]
    return Forecast(
        images,
        tflop_per_image=gflop / images / 1e3,
        eflop=gflop / 1e9,
        device_hours=gflop / 1e3 / (device.peak * share) / 3600,
        gigabytes=images * math.prod(shape) * per_value / 1e9,
    )


def total(parts: Sequence[Forecast]) -> Forecast:
    """One forecast for the images of several, on the same device."""
    images, eflop = sum(f.images for f in parts), sum(f.eflop for f in parts)
    return Forecast(
        images,
        tflop_per_image=1e6 * eflop / images,
        eflop=eflop,
        device_hours=sum(f.device_hours for f in parts),
        gigabytes=sum(f.gigabytes for f in parts),
    )


def _configs(settings: Generation) -> Mapping[str, dict[str, Any]]:
    if settings.model == SD14 and not Path(SD14).is_dir():
        return SD14_CONFIGS
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig

    source = weights.resolve(settings.model, "stable-diffusion")
    with loading("generate.model", f"the configs of {settings.model}"):
        text_encoder = CLIPTextConfig.from_pretrained(source, subfolder="text_encoder")
        return {
            "unet": UNet2DConditionModel.load_config(source, subfolder="unet"),
            "vae": AutoencoderKL.load_config(source, subfolder="vae"),
            "text_encoder": text_encoder.to_dict(),
        }


def _gflop(call: Callable[[], object]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    flop: int = counter.get_total_flops()
    return flop / 1e9
