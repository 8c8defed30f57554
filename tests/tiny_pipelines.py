"""Image-to-image pipelines of other families than Stable Diffusion 1, of random parameters: their
layout on disk, and nothing learned."""

from pathlib import Path

import tiny_sd
import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

SIDE = 32
NOISE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
}  # fmt: skip


def save_turbo(path: Path) -> Path:
    """SD-Turbo's kind: a Stable Diffusion whose own scheduler takes a step or two."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd.save(path))
    pipe.register_modules(scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="trailing"))
    pipe.save_pretrained(path)
    return path


def save_sdxl(path: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = tiny_sd._tokenizer(tiny_sd.WORDS)
    first = CLIPTextModel(_clip(tokenizer))
    second = CLIPTextModelWithProjection(_clip(tokenizer))
    unet = UNet2DConditionModel(
        sample_size=SIDE // 2, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8,
        cross_attention_dim=64, attention_head_dim=4, use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=_vae(4), text_encoder=first, text_encoder_2=second, tokenizer=tokenizer,
        tokenizer_2=tokenizer, unet=unet,
        scheduler=EulerAncestralDiscreteScheduler(**NOISE), add_watermarker=False,
    ).save_pretrained(path)  # fmt: skip
    return path


def save_sd3(path: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = tiny_sd._tokenizer(tiny_sd.WORDS)
    t5, encoder = _t5(64)
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // 2, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=64,
        pooled_projection_dim=32, out_channels=4, pos_embed_max_size=32,
    )  # fmt: skip
    StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=_vae(4),
        text_encoder=CLIPTextModelWithProjection(_clip(tokenizer)), tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(_clip(tokenizer)), tokenizer_2=tokenizer,
        text_encoder_3=encoder, tokenizer_3=t5,
    ).save_pretrained(path)  # fmt: skip
    return path


def save_flux(path: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = tiny_sd._tokenizer(tiny_sd.WORDS)
    t5, encoder = _t5(32)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    FluxPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=_vae(4),
        text_encoder=CLIPTextModel(_clip(tokenizer)), tokenizer=tokenizer,
        text_encoder_2=encoder, tokenizer_2=t5,
    ).save_pretrained(path)  # fmt: skip
    return path


def _t5(width: int) -> tuple[T5Tokenizer, T5EncoderModel]:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -1.0) for word in tiny_sd.WORDS]
    config = T5Config(
        vocab_size=len(pieces), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
    return tokenizer, T5EncoderModel(config)


def _clip(tokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=2, projection_dim=16,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def _vae(channels: int) -> AutoencoderKL:
    """It takes two pixels to one."""
    return AutoencoderKL(
        latent_channels=channels, block_out_channels=(8, 16), norm_num_groups=4, sample_size=SIDE,
        layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, shift_factor=0.1, scaling_factor=0.5,
        force_upcast=False,
    )  # fmt: skip
