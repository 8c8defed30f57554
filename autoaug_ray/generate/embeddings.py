"""Embeddings of class names, by which neighbouring classes are found (AutoGenDA, section 3.2)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autoaug_ray.errors import UserError
from autoaug_ray.generate import weights
from autoaug_ray.models.loading import loading

PROMPT = "a photo of a {name}"


def class_embeddings(
    names: Sequence[str], embedder: str, model: str, device: torch.device
) -> Tensor:
    """The embeddings (C, d) float32 of the names, on the CPU, to be compared by cosine.

    `embedder` "pipeline" is the first text encoder, a CLIP, of the `model`, a folder or hub id as
    `weights.resolve` gives it; anything else is a sentence-transformers model (the paper's choice).
    Raises UserError for models that cannot be loaded.
    """
    if embedder == "pipeline":
        rows = _clip(names, model, device)
        # CLIP puts all prompts of one template into a narrow cone: what they share, their mean, is
        # most of every row, and all cosines are near 1 until it is gone. Sentence-transformers are
        # trained so that the cosine of two sentences is their similarity; theirs stay as they are.
        rows = rows - rows.mean(0)
    else:
        rows = _sentences(names, embedder, device)
    return rows.float().cpu()


@torch.no_grad()
def _clip(names: Sequence[str], model: str, device: torch.device) -> Tensor:
    """The pooled embedding of each name's prompt, (C, d)."""
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError:
        raise UserError(
            "generate.embedder: pipeline needs transformers: pip install transformers."
        ) from None
    with loading("generate.model", f"the text encoder of {model}"):
        tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
        encoder: Any = CLIPTextModel.from_pretrained(
            model, subfolder="text_encoder", dtype=torch.float32
        )
    inputs = tokenizer(
        [PROMPT.format(name=n) for n in names], padding=True, truncation=True, return_tensors="pt"
    )
    pooled: Tensor = encoder.eval().to(device)(**inputs.to(device)).pooler_output
    return pooled


@torch.no_grad()
def _sentences(names: Sequence[str], embedder: str, device: torch.device) -> Tensor:
    """The sentence-transformers embedding of each name, (C, d)."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError(
            f"generate.embedder: {embedder} needs sentence-transformers: "
            "pip install sentence-transformers, or use embedder: pipeline."
        ) from None
    folder_or_id = weights.resolve(embedder, "stable-diffusion")
    with loading("generate.embedder", embedder):
        encoder = SentenceTransformer(folder_or_id, device=str(device))
    rows: Tensor = encoder.encode(list(names), convert_to_tensor=True, show_progress_bar=False)
    return rows
