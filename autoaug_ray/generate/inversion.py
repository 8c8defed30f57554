"""Textual inversion: one new word per class, learned from its images by a frozen model.

Gal et al. 2023, as DAFusion uses it (AutoGenDA, section 4): a class's placeholder `<ankle_boot>`
has embeddings of its own, and these alone learn, by the loss that the model was trained with:

    E |eps - eps_hat(sqrt(abar_t) x0 + sqrt(1 - abar_t) eps, t, "a photo of a <ankle_boot>")|^2

Unlike there, latents are encoded once, of every image and, with `Tokens.flip`, of its mirror image.
The classes of a call learn together, each drawn equally often; `Tokens.per_class` is one call per
class.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import safetensors
import safetensors.torch
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from autoaug_ray.errors import RunError, UserError
from autoaug_ray.generate import pipeline, resize
from autoaug_ray.generate.pipeline import ROWS, Pipeline
from autoaug_ray.generate.prompts import TEMPLATES, token_name
from autoaug_ray.generate.settings import Generation
from autoaug_ray.store.files import write_whole
from autoaug_ray.store.places import Place


def invert(
    settings: Generation,
    images: Tensor,  # (n, C, H, W) uint8
    labels: Tensor,  # (n,) int64
    names: Sequence[str],  # by label
    *,
    device: torch.device,
) -> dict[str, Tensor]:
    """Learned embeddings (vectors, width) float32 by placeholder, on the CPU.

    Raises UserError for a class without images and for an initializer that is not one token.
    """
    how = settings.tokens
    assert how is not None, "without generate.tokens there is nothing to learn"
    by_class = [(labels == label).nonzero().flatten() for label in range(len(names))]
    for name, index in zip(names, by_class, strict=True):
        if not len(index):
            raise UserError(f"generate.tokens: class {name!r} has no images to learn from.")
    if settings.precision == "fp16":  # whose gradients vanish without a loss scale
        settings = settings.model_copy(update={"precision": "bf16"})
    pipe = pipeline.stable_diffusion(settings, device, "tokens")
    placeholders = [token_name(name) for name in names]
    first = _embedding_of(how.initializer, pipe).float()
    add(pipe, {name: first.repeat(how.vectors, 1) for name in placeholders})
    side = pipeline.side(settings, pipe)
    shown = [images, images.flip(-1)] if how.flip else [images]
    latents = torch.stack([_encode(pipe, some, side) for some in shown], dim=1)
    noising: Any = DDPMScheduler(**pipeline.noise_levels(pipe))

    learned = nn.Parameter(first.repeat(len(names), how.vectors, 1))
    # DAFusion neither warms up nor decays the rate.
    optimiser = torch.optim.AdamW([learned], lr=how.lr, weight_decay=1e-2)
    noise = torch.Generator().manual_seed(how.seed)
    classes = _cycle(len(names), noise)
    with _learning(pipe, placeholders, learned):
        for step in range(how.steps):
            drawn = [next(classes) for _ in range(how.batch_size)]
            x0 = torch.stack([_one_of(latents[_one_of(by_class[c], noise)], noise) for c in drawn])
            text = [
                TEMPLATES[int(torch.randint(len(TEMPLATES), (), generator=noise))].format(
                    placeholders[label]
                )
                for label in drawn
            ]
            t = torch.randint(noising.config.num_train_timesteps, (len(drawn),), generator=noise)
            eps = torch.randn(x0.shape, generator=noise)
            loss = denoising_loss(pipe, noising, x0, text, t, eps)
            if not bool(loss.isfinite()):
                raise RunError(f"textual inversion: the loss is {float(loss)} at step {step}.")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return dict(zip(placeholders, learned.detach().cpu(), strict=True))


def denoising_loss(
    pipe: Pipeline, noising: Any, x0: Tensor, text: Sequence[str], t: Tensor, eps: Tensor
) -> Tensor:
    """The mean squared error of the model's prediction, which is noise, velocity or x0.

    x0, eps: latents (n, 4, h, w); t: (n,); `noising`: a DDPMScheduler.
    """
    device, dtype = pipe.device, pipe.unet.dtype
    x0, eps, t = x0.to(device), eps.to(device), t.to(device)
    embeddings, _ = pipe.encode_prompt(list(text), device, 1, False)
    noisy = noising.add_noise(x0, eps, t)
    kind = noising.config.prediction_type
    target = {"epsilon": eps, "sample": x0}.get(kind)
    if target is None:
        target = noising.get_velocity(x0, eps, t)
    predicted = pipe.unet(noisy.to(dtype), t, encoder_hidden_states=embeddings).sample
    return F.mse_loss(predicted.float(), target.float())


def add(pipe: Pipeline, tokens: Mapping[str, Tensor]) -> None:
    """Teaches the tokenizer the placeholders, and the text encoder their embeddings."""
    width = pipe.text_encoder.get_input_embeddings().weight.shape[1]
    more = sum(len(vectors) for vectors in tokens.values())
    for name, vectors in tokens.items():
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise UserError(
                f"generate.tokens: {name} was learned for a model with embeddings of width "
                f"{vectors.shape[-1]}, this one's have {width}."
            )
    # It would first fill the new rows by the statistics of all others, with a note about it.
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer) + more, mean_resizing=False)
    pipe.load_textual_inversion(list(tokens.values()), token=list(tokens))


def save(path: Place, tokens: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file whole."""
    write_whole(path, safetensors.torch.save({k: v.contiguous() for k, v in tokens.items()}))


def load(path: Place) -> dict[str, Tensor]:
    """What `save` wrote. Raises UserError if it is not there or something else."""
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"generate.tokens: {path} cannot be read ({error}).") from None


def add_learned(pipe: Pipeline, files: Sequence[Place]) -> None:
    """`add` what `save` wrote to these files, if there are any. Raises UserError like `load`."""
    words: dict[str, Tensor] = {}
    for file in files:
        words |= load(file)
    if words:
        add(pipe, words)


@contextmanager
def _learning(pipe: Pipeline, placeholders: Sequence[str], learned: nn.Parameter) -> Iterator[None]:
    """`learned` (classes, vectors, width) stand in for the placeholders' frozen embeddings.

    Only they get gradients: no row of the table needs to be put back after a step.
    """
    vectors = learned.shape[1]
    words = [f"{p}_{i}" if i else p for p in placeholders for i in range(vectors)]
    table = pipe.text_encoder.get_input_embeddings()
    row_of = torch.full((len(table.weight),), -1, device=pipe.device)
    row_of[pipe.tokenizer.convert_tokens_to_ids(words)] = torch.arange(
        len(words), device=pipe.device
    )

    def swap(module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        row = row_of[arguments[0]]
        word = learned.flatten(0, 1)[row.clamp(min=0)].to(output.dtype)
        return torch.where(row[..., None] >= 0, word, output)

    hook = table.register_forward_hook(swap)
    try:
        yield
    finally:
        hook.remove()


def _embedding_of(word: str, pipe: Pipeline) -> Tensor:
    """The embedding (width,) of a word, which must be one token. Raises UserError if it is not."""
    ids = pipe.tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise UserError(
            f"generate.tokens.initializer must be one token of the model's vocabulary; "
            f"{word!r} is {len(ids)}."
        )
    row: Tensor = pipe.text_encoder.get_input_embeddings().weight[ids[0]].detach()
    return row.clone()


def _encode(pipe: Pipeline, images: Tensor, side: int) -> Tensor:
    """(n, C, H, W) uint8 -> latents (n, 4, h, w) on the CPU."""
    with torch.no_grad():
        parts = [
            pipeline.encode(pipe, resize.enlarge(some / 255, side)).cpu()
            for some in images.split(ROWS)
        ]
    return torch.cat(parts)


def _cycle(n: int, generator: torch.Generator) -> Iterator[int]:
    """Yields 0 .. n - 1 in a new order each time round, for ever."""
    while True:
        yield from torch.randperm(n, generator=generator).tolist()


def _one_of(items: Tensor, generator: torch.Generator) -> Tensor:
    """A random item of the first axis; nothing is drawn if there is only one."""
    if len(items) == 1:
        return items[0]
    return items[torch.randint(len(items), (), generator=generator)]
