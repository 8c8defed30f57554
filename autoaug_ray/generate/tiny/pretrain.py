"""Train the embedded models: a small Stable Diffusion and a small BLIP of clothes, from scratch.

    python -m autoaug_ray.generate.tiny.pretrain /usr/share/datasets/fashion-mnist
    python -m autoaug_ray.generate.tiny.pretrain --subset few.npz --out few/    # diffusion alone

The classes are diffusers' and transformers' own, so a real Stable Diffusion or BLIP takes their
place by its name. Only the pre-training half of Fashion-MNIST is read (`excerpt.py`): no image of
it is in the pool that experiments draw from. That half has the same classes, and its labels are
in the captions; whoever reports a gain with these models should report beside it the row of a
pipeline that saw the small training subset only, which is what `--subset` makes.

Every number of steps is fixed and so is every seed: the same versions on the same machine with as
many threads (OMP_NUM_THREADS=1 for the embedded ones) make the same weights.
"""

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)

from autoaug_ray.data.arrays import FASHION_MNIST_CLASSES, read_fashion_mnist
from autoaug_ray.errors import UserError, exit_status
from autoaug_ray.generate.tiny import attributes
from autoaug_ray.generate.tiny.excerpt import halves
from autoaug_ray.generate.weights import EMBEDDED
from autoaug_ray.models import parameter_count

Diffusers = Any
"""A part of a pipeline: diffusers' classes have no types."""
SIDE, MARGIN = 32, 2  # 28x28 images in a black frame: a side that the models can halve three times
TOKENS = 32  # per prompt; the longest caption takes 18, the rest is for learned words
SPOKEN = "a an the photo of which is and".split() + [
    w for c in attributes.WORDS.values() for w in c
]


@dataclass(frozen=True)
class Recipe:
    """How long each part is trained; the defaults made the embedded weights."""

    vae_steps: int = 2500
    vae_batch: int = 32
    unet_steps: int = 4500
    unet_horizon: int = 6500
    """Steps after which its learning rate would be nothing; it is constant in their first half."""
    unet_batch: int = 64
    captioner_steps: int = 1500
    captioner_batch: int = 64
    save_every: int = 500
    """UNet steps between two saves; an interruption loses no more."""
    seed: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("root", type=Path, nargs="?", help="folder with the IDX files")
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    parser.add_argument(
        "--subset", type=Path,
        help="train the diffusion model alone, on this .npz of images (n, 28, 28) and labels (n,)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=Recipe.unet_steps, help="of the UNet")
    args = parser.parse_args(argv)
    names = FASHION_MNIST_CLASSES  # as prompts say them: their prompts.prompt_name is themselves
    recipe = Recipe(unet_steps=args.steps, unet_horizon=max(args.steps, Recipe.unet_horizon))
    if args.subset is not None:
        if args.out == EMBEDDED:
            raise UserError("pretrain: --subset needs --out, or it would replace what ships.")
        with np.load(args.subset, allow_pickle=False) as arrays:
            pretrain(
                arrays["images"], arrays["labels"], names, args.out / "stable-diffusion", recipe
            )
        return 0
    if args.root is None:
        raise UserError("pretrain: name the folder of the IDX files, or a --subset.")
    images, labels = read_fashion_mnist(args.root, train=True)
    half = halves(labels)[0]
    images, labels = images[half], labels[half]
    pretrain_captioner(images, labels, names, args.out / "blip", recipe)
    pretrain(images, labels, names, args.out / "stable-diffusion", recipe)

    from autoaug_ray.generate.tiny import quality

    return quality.main([str(args.root), "--models", str(args.out)])


def pretrain(
    images: np.ndarray, labels: np.ndarray, names: Sequence[str], out: Path, recipe: Recipe
) -> None:
    """Trains a text-guided latent diffusion on images (n, 28, 28) uint8, and saves it to `out`."""
    torch.manual_seed(recipe.seed)
    tokenizer = clip_tokenizer([*SPOKEN, *names])
    text_encoder, vae, unet, scheduler = diffusion_parts(tokenizer)
    show("diffusion", text_encoder=text_encoder, vae=vae, unet=unet)
    x = frame(images)

    train_autoencoder(vae, x, recipe)
    mean, std = latents(vae, x)
    scale = float(1 / mean.std())
    vae.register_to_config(scaling_factor=scale)

    train_denoiser(
        unet, text_encoder, tokenizer, scheduler, mean * scale, std * scale,
        captions_of(images, labels, names), recipe,
        save=lambda unet, text: save_pipeline(out, tokenizer, text, vae, unet, scheduler),
    )  # fmt: skip


def pretrain_captioner(
    images: np.ndarray, labels: np.ndarray, names: Sequence[str], out: Path, recipe: Recipe
) -> None:
    """Trains a BLIP to continue `a photo of a NAME which` for such images; saves it to `out`."""
    torch.manual_seed(recipe.seed)
    model, processor = blip([*SPOKEN, *names])
    show("captioner", blip=model)
    train_captioner(model, processor, images, labels, names, recipe)
    copy.deepcopy(model).half().save_pretrained(out)
    processor.save_pretrained(out)


# The models


def diffusion_parts(
    tokenizer: CLIPTokenizer,
) -> tuple[CLIPTextModel, Diffusers, Diffusers, Diffusers]:
    """Text encoder, VAE, UNet and scheduler: Stable Diffusion v1's classes, small, random weights.

    Images (n, 3, 32, 32) in [-1, 1], latents (n, 4, 16, 16), prompts (n, TOKENS, 64).
    """
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, projection_dim=64,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    vae: Diffusers = AutoencoderKL(
        sample_size=SIDE, latent_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4, mid_block_add_attention=False,
    )  # fmt: skip
    # Attention at 4x4 only: at 8x8 it costs half a step more, and garments are centred.
    unet: Diffusers = UNet2DConditionModel(
        sample_size=SIDE // 2, in_channels=4, out_channels=4, block_out_channels=(32, 32, 64),
        layers_per_block=1, cross_attention_dim=64, attention_head_dim=2, norm_num_groups=16,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler: Diffusers = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    # Without it, a DDIMScheduler.from_config of this one would clip latents to [-1, 1].
    scheduler.register_to_config(clip_sample=False)
    return text_encoder, vae, unet, scheduler


def clip_tokenizer(phrases: Sequence[str]) -> CLIPTokenizer:
    """Byte-level BPE in which each word of `phrases` is one token and any other can be spelled."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [letter + "</w>" for letter in alphabet]
    merges: Any = []  # pairs, which the annotation of CLIPTokenizer does not know
    for word in words_of(phrases):
        head, tail = word[:-1], word[-1] + "</w>"
        # From the right: what ends in </w> cannot occur inside another word, so that no merge of
        # one word spoils another.
        for letter in reversed(head):
            if (letter, tail) not in merges:
                merges.append((letter, tail))
            tail = letter + tail
            if tail not in tokens:
                tokens.append(tail)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def words_of(phrases: Sequence[str]) -> list[str]:
    """The different words of all phrases, in order: `t-shirt` is `t` and `shirt`."""
    return list(dict.fromkeys(w for p in phrases for w in p.replace("-", " ").split()))


def blip(phrases: Sequence[str]) -> tuple[BlipForConditionalGeneration, BlipProcessor]:
    """BLIP for 32x32 pixels in 4x4 patches whose vocabulary is the words of `phrases`, and letters.

    Random weights. [DEC] is the token that a caption starts with, as in the released BLIP.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789,.-'")
    tokens = dict.fromkeys(special + words_of(phrases) + letters + ["##" + c for c in letters])
    tokenizer = BertTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, bos_token="[DEC]",
        model_max_length=TOKENS, padding_side="left",
    )  # fmt: skip
    width = {
        "hidden_size": 64, "intermediate_size": 128, "projection_dim": 64, "num_attention_heads": 4,
    }  # fmt: skip
    text = width | {
        "num_hidden_layers": 2, "encoder_hidden_size": 64, "vocab_size": len(tokenizer),
        "max_position_embeddings": TOKENS, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.sep_token_id, "sep_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id, "label_smoothing": 0.0,
    }  # fmt: skip
    vision = width | {"num_hidden_layers": 3, "image_size": SIDE, "patch_size": 4}
    config = BlipConfig(
        text_config=text, vision_config=vision, projection_dim=64, image_text_hidden_size=64
    )
    images = BlipImageProcessor(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return BlipForConditionalGeneration(config), BlipProcessor(images, tokenizer)


# Training


def train_autoencoder(vae: Diffusers, x: Tensor, recipe: Recipe) -> None:
    """Minimises squared and absolute error, and a KL term too small to make latents noisy."""
    optimiser = torch.optim.AdamW(vae.parameters(), lr=3e-3, weight_decay=1e-4, fused=True)
    batches = draw(len(x), recipe.vae_batch, recipe.vae_steps, recipe.seed)
    log = Log("autoencoder", recipe.vae_steps)
    for step, index in enumerate(batches):
        batch = rgb(x[index])
        posterior = vae.encode(batch).latent_dist
        output = vae.decode(posterior.sample()).sample
        squared = F.mse_loss(output, batch)
        kl = (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        loss = squared + 0.2 * F.l1_loss(output, batch) + 1e-4 * kl
        rate = cosine(step, recipe.vae_steps, warmup=50)
        descend(optimiser, loss, 3e-3 * rate)
        log(step, squared / 4)  # of images in [0, 1]
    vae.eval()


@torch.no_grad()
def latents(vae: Diffusers, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of x (n, 1, 32, 32), each (n, 4, 16, 16)."""
    posteriors = [vae.encode(rgb(batch)).latent_dist for batch in x.split(500)]
    return torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])


def train_denoiser(
    unet: Diffusers,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    scheduler: Diffusers,
    mean: Tensor,
    std: Tensor,
    caption: Callable[[int, np.random.Generator], str],
    recipe: Recipe,
    save: Callable[[nn.Module, nn.Module], None],
) -> None:
    """Trains UNet and text encoder together to predict the noise; saves their moving average."""

    @cache
    def ids(text: str) -> Tensor:
        padded = tokenizer(text, padding="max_length", max_length=TOKENS, return_tensors="pt")
        tokens: Tensor = padded.input_ids[0]
        return tokens

    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    models = nn.ModuleList([unet, text_encoder]).train()
    average = copy.deepcopy(models).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(models.parameters(), lr=1.5e-3, weight_decay=1e-3, fused=True)
    batches = draw(len(mean), recipe.unet_batch, recipe.unet_steps, recipe.seed)
    log = Log("denoiser", recipe.unet_steps)
    for step, index in enumerate(batches):
        prompts = torch.stack([ids(caption(int(i), rng)) for i in index])
        different, where = torch.unique(prompts, dim=0, return_inverse=True)
        states = text_encoder(different).last_hidden_state[where]
        clean = mean[index] + std[index] * torch.randn_like(mean[index])
        noise = torch.randn_like(clean)
        t = torch.randint(scheduler.config.num_train_timesteps, (len(index),))
        noisy = scheduler.add_noise(clean, noise, t)
        loss = F.mse_loss(unet(noisy, t, encoder_hidden_states=states).sample, noise)
        rate = min(1.0, (step + 1) / 100, 2 * (1 - step / recipe.unet_horizon) + 0.02)
        descend(optimiser, loss, 1.5e-3 * rate)
        # It reaches back over a tenth of the steps so far at first, and 1000 steps later on.
        keep = min(0.999, (1 + step) / (10 + step))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), models.parameters(), strict=True):
                slow.lerp_(fast, 1 - keep)
        log(step, loss)
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.unet_steps:
            save(average[0], average[1])


def captions_of(
    images: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> Callable[[int, np.random.Generator], str]:
    """A function that writes a caption of image i; 10 % are empty, which guidance needs."""
    words = attributes.words(images)

    def caption(i: int, rng: np.random.Generator) -> str:
        name, dice = names[labels[i]], rng.random()
        if dice < 0.1:
            return ""
        if dice < 0.2:
            article = "a" if dice < 0.15 else "the"  # learned words start as "the"
            return f"a photo of {article} {name}"
        some = [w for w in words[i] if dice < 0.85 or rng.random() < 0.6]
        return attributes.caption(name, some)

    return caption


def train_captioner(
    model: BlipForConditionalGeneration,
    processor: BlipProcessor,
    images: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    recipe: Recipe,
) -> None:
    """Minimises the cross entropy of what follows `which`; the words before it are always given."""
    tokenizer = processor.tokenizer
    x, words = frame(images), attributes.words(images)

    @cache
    def ids(text: str) -> Tensor:
        tokens: Tensor = tokenizer(
            text, padding="max_length", max_length=TOKENS, padding_side="right", return_tensors="pt"
        ).input_ids[0]
        tokens[0] = tokenizer.bos_token_id  # as BLIP's `generate` does
        return tokens

    prefix_lengths = [len(tokenizer(f"a photo of a {name} which").input_ids) - 1 for name in names]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=1e-2)
    batches = draw(len(x), recipe.captioner_batch, recipe.captioner_steps, recipe.seed)
    log = Log("captioner", recipe.captioner_steps)
    model.train()
    for step, index in enumerate(batches):
        text = torch.stack([ids(attributes.caption(names[labels[i]], words[i])) for i in index])
        targets = text.masked_fill(text == tokenizer.pad_token_id, -100)
        for row, i in enumerate(index):
            targets[row, : prefix_lengths[labels[i]]] = -100
        loss = model(
            pixel_values=rgb(x[index]),
            input_ids=text,
            attention_mask=(text != tokenizer.pad_token_id).long(),
            labels=targets,
        ).loss
        descend(optimiser, loss, 1.5e-3 * cosine(step, recipe.captioner_steps, warmup=100))
        log(step, loss)
    model.eval()


def draw(n: int, batch: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Yields `steps` batches of indices below n, drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield torch.randint(n, (batch,), generator=generator)


def cosine(step: int, steps: int, warmup: int) -> float:
    """The share of the learning rate: linear from nothing, then half a cosine down."""
    return min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def descend(optimiser: torch.optim.Optimizer, loss: Tensor, lr: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], 1.0)
    optimiser.step()


def frame(images: np.ndarray) -> Tensor:
    """(n, 28, 28) uint8 -> (n, 1, 32, 32) float in [-1, 1], in a black frame."""
    x = torch.from_numpy(images.astype(np.float32))[:, None] / 127.5 - 1
    return F.pad(x, (MARGIN,) * 4, value=-1.0)


def rgb(x: Tensor) -> Tensor:
    return x.expand(-1, 3, -1, -1)


class Log:
    """Prints the mean of a loss twenty times during a training."""

    def __init__(self, name: str, steps: int) -> None:
        self.name, self.steps = name, steps
        self.start = time.process_time()
        self.losses: list[float] = []

    def __call__(self, step: int, loss: Tensor) -> None:
        self.losses.append(float(loss.detach()))
        if (step + 1) % math.ceil(self.steps / 20) == 0 or step + 1 == self.steps:
            mean, seconds = np.mean(self.losses), time.process_time() - self.start
            print(
                f"{self.name} {step + 1}/{self.steps}: {mean:.5f}, {seconds:.0f} CPU s", flush=True
            )
            self.losses.clear()


# Files


def save_pipeline(
    out: Path,
    tokenizer: CLIPTokenizer,
    text_encoder: nn.Module,
    vae: Diffusers,
    unet: Diffusers,
    scheduler: Diffusers,
) -> None:
    """Saves half precision under the plain names, so that `from_pretrained` needs no `variant`."""
    parts: dict[str, nn.Module] = {"text_encoder": text_encoder, "vae": vae, "unet": unet}
    half: dict[str, Any] = {name: copy.deepcopy(p).half().eval() for name, p in parts.items()}
    pipeline: Diffusers = StableDiffusionImg2ImgPipeline(
        **half, tokenizer=tokenizer, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(out)


def show(title: str, **parts: nn.Module) -> None:
    sizes = {name: parameter_count(part) for name, part in parts.items()}
    print(
        f"{title}: " + ", ".join(f"{n:,} parameters in {k}" for k, n in sizes.items()), flush=True
    )


if __name__ == "__main__":
    sys.exit(exit_status(main, again="what was saved last is there."))
