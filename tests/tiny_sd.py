"""A whole Stable Diffusion of 0.3 M random parameters: its layout on disk, and nothing learned."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WORDS = ("a", "photo", "of", "the", "which", "is", "cat", "dog", "red", "blue", "on", "grass")
SIDE = 64
"""The side in pixels; the VAE takes 8 of them to 1, as Stable Diffusion's does."""


def save(path: Path, words: Sequence[str] = WORDS, seed: int = 0) -> Path:
    """Saves the pipeline; its tokenizer has a token per word of `words`, and spells others."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer(words)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=SIDE // 8, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8,
        cross_attention_dim=32, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        latent_channels=4, block_out_channels=(8, 8, 16, 16), norm_num_groups=4,
        layers_per_block=1, sample_size=SIDE, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    StableDiffusionImg2ImgPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(path)  # fmt: skip
    return path


def _tokenizer(words: Sequence[str]) -> CLIPTokenizer:
    """Byte-level BPE whose merges build each of `words`, letter by letter."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spellings = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges, merged = merges_of(spellings)
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *merged]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def merges_of(spellings: Iterable[Sequence[str]]) -> tuple[list[tuple[str, str]], list[str]]:
    """Merges that build each spelling from its left, and the different tokens that they make."""
    merges: dict[tuple[str, str], str] = {}
    for first, *rest in spellings:
        for part in rest:
            merges[first, part] = first + part
            first += part
    return list(merges), list(dict.fromkeys(merges.values()))
