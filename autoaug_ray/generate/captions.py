"""What a captioner adds to "a photo of a <y> which" about an image (AutoGenDA, section 3.1).

BLIP-2, BLIP and other image-text-to-text models differ in what they do with a prompt. BLIP's
`generate` drops its last token; padding on either side changes what BLIP says, on the right what
BLIP-2 says; BLIP-2 ignores the image, without a word, if its processor puts no tokens for it;
decoders return the prompt rewritten ("t - shirt"), encoder-decoders do not return it at all. So
only prompts of equally many tokens go together, which needs no padding, the prompt is cut off by
its tokens and not by its letters, and a model that does not see is refused.

Models that were tuned to talk (LLaVA, Qwen2-VL and most since) have a chat template. They are asked
what the image shows, and go on with an answer that begins with the prompt.
"""

import inspect
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autoaug_ray.errors import UserError
from autoaug_ray.generate import weights
from autoaug_ray.generate.prompts import clean
from autoaug_ray.generate.resize import PADDED, enlarge
from autoaug_ray.generate.settings import Precision
from autoaug_ray.models.loading import loading

MAX_NEW_TOKENS = 24
ASKED = "What does the image show? Answer with one short sentence."
"""The user's words to a model that talks."""
BATCH = 32
"""Images at a time; continuations do not depend on it."""


class Captioner:
    """A model on a device, saying greedily what is most probable.

    `model` is a folder or hub id, as `weights.resolve` gives it. `precision` is of the model on a
    GPU; on a CPU, and for fp64, it is fp32. Raises UserError for what cannot be loaded, is no such
    model, or pays no attention to the image.
    """

    def __init__(self, model: str, *, device: torch.device, precision: Precision = "fp32") -> None:
        half = {"bf16": torch.bfloat16, "fp16": torch.float16} if device.type != "cpu" else {}
        self._dtype = half.get(precision, torch.float32)
        self._device = device
        self._name = model
        self.rows = BATCH
        self._processor, self._model = _load(model, self._dtype)
        self._model.to(device)
        self._talks = bool(getattr(self._processor, "chat_template", None))
        # BERT's tokenizers give them, BLIP and GIT do not take them; Gemma's tell images from text.
        self._takes_types = "token_type_ids" in inspect.signature(self._model.forward).parameters
        for module in self._model.modules():
            # Decoding is ours, not the checkpoint's: beams, sampling and length limits would differ
            # from model to model. BLIP and BLIP-2 ask an inner module for its own.
            if getattr(module, "generation_config", None) is not None:
                module.generation_config = _greedy(module.generation_config)
        self.fingerprint = weights.fingerprint(model)
        self._check_that_it_sees()

    def continuations(self, images: Tensor, names: Sequence[str], prefix: str) -> list[str]:
        """What follows `prefix.format(name=name)`, for images (n, C, H, W) uint8, C 1 or 3.

        `names` gives each image's class. A continuation may be empty. Raises UserError for a
        prompt that leaves the model no room to go on.
        """
        assert len(images) == len(names) and images.dtype == torch.uint8
        prompts = [prefix.format(name=name).strip() for name in names]
        texts = self._with_image(prompts)
        length = {text: len(self._tokenizer(text).input_ids) for text in set(texts)}
        alike: defaultdict[int, list[int]] = defaultdict(list)
        for i, text in enumerate(texts):
            alike[length[text]].append(i)
        continuations = [""] * len(prompts)
        for members in alike.values():
            for start in range(0, len(members), self.rows):
                part = members[start : start + self.rows]
                inputs = self._inputs(images[part], [prompts[i] for i in part])
                for i, text in zip(part, self._generate(inputs), strict=True):
                    continuations[i] = text
        return continuations

    @property
    def _tokenizer(self) -> Any:
        return self._processor.tokenizer

    def _inputs(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """The model's inputs. All prompts have equally many tokens, so that none is padded."""
        images = images.cpu()
        images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        side = _square(self._processor.image_processor.size or {})
        fitting: dict[str, Any] = {}
        if side is not None and all(0 <= side - n <= PADDED for n in images.shape[-2:]):
            # As the edits see it: 28x28 is padded to 32x32 with black, not stretched.
            images = (enlarge(images / 255, side) * 255).round().to(torch.uint8)
            fitting = {"do_resize": False}
        text = self._with_image(prompts)
        start = self._tokenizer.bos_token
        if self._talks and start is not None and text[0].startswith(start):
            fitting["add_special_tokens"] = False  # the template has put them
        inputs = self._processor(images=list(images), text=text, return_tensors="pt", **fitting)
        if not self._takes_types:
            inputs.pop("token_type_ids", None)
        if self._model.config.model_type == "git":
            # Its tokenizer ends a prompt as if that were the whole caption.
            inputs |= {k: inputs[k][:, :-1] for k in ("input_ids", "attention_mask")}
        return {
            k: v.to(self._device, self._dtype if v.is_floating_point() else v.dtype)
            for k, v in inputs.items()
        }

    def _with_image(self, prompts: list[str]) -> list[str]:
        """Puts each prompt into the model's chat, or behind the sign for "here is the image".

        BLIP-2's processor puts its own.
        """
        if self._talks:
            return [
                self._processor.apply_chat_template(
                    _chat(prompt), tokenize=False, continue_final_message=True
                )
                for prompt in prompts
            ]
        token = getattr(self._processor, "image_token", None)
        return [f"{token}{p}" for p in prompts] if isinstance(token, str) else prompts

    @torch.inference_mode()
    def _generate(self, inputs: dict[str, Tensor]) -> list[str]:
        prompt = inputs["input_ids"]
        out = self._model.generate(**inputs, max_new_tokens=self._room(prompt))
        if self._model.config.model_type == "blip":
            out = out[:, prompt.shape[1] - 1 :]  # BLIP took the separator from the prompt's end
        elif torch.equal(out[:, : prompt.shape[1]], prompt):
            out = out[:, prompt.shape[1] :]
        texts = self._tokenizer.batch_decode(out, skip_special_tokens=True)
        # Language models that were trained on lines go on with another line.
        return [clean(t.strip().partition("\n")[0]) for t in texts]

    def _room(self, prompt: Tensor) -> int:
        """How many new tokens the model may add at most.

        The shipped model reads 32 tokens in all, and spells words that it does not know by letters.
        """
        config = getattr(self._model.config, "text_config", self._model.config)
        most = getattr(config, "max_position_embeddings", None)
        room = MAX_NEW_TOKENS if most is None else min(MAX_NEW_TOKENS, most - prompt.shape[1])
        if room < 1:
            text = self._tokenizer.decode(prompt[0], skip_special_tokens=True)
            raise UserError(
                f"generate.captioner: {self._name} reads at most {most} tokens, and the prompt "
                f"{text!r} alone has {prompt.shape[1]}; use another captioner, or shorter names."
            )
        return room

    @torch.inference_mode()
    def _check_that_it_sees(self) -> None:
        """Raises UserError if black and white images are described alike.

        BLIP-2 has a known reason for it: its processor may put no image tokens.
        """
        size = self._processor.image_processor.size or {}
        # Qwen's processors say "shortest_edge" for a number of pixels in all.
        side = _square(size) or min(size.get("shortest_edge") or 224, 448)
        shades = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None]
        inputs = self._inputs(shades.expand(-1, 3, side, side), ["a photo"] * 2)
        config = self._model.config
        wanted = getattr(config, "num_query_tokens", None)
        if wanted is not None:
            given = int((inputs["input_ids"][0] == config.image_token_index).sum())
            if given != wanted:
                raise UserError(
                    f"generate.captioner: the processor of {self._name} puts {given} image tokens "
                    f"before a prompt and the model reads {wanted}, so it would not see the image; "
                    f"set num_query_tokens to {wanted} in its processor_config.json."
                )
        first = self._model.generate(
            **inputs, max_new_tokens=1, return_dict_in_generate=True, output_logits=True
        ).logits[0]
        if torch.equal(first[0], first[1]):
            raise UserError(
                f"generate.captioner: {self._name} says the same of any image: with this version "
                "of transformers it does not see them."
            )


def _load(model: str, dtype: torch.dtype) -> tuple[Any, Any]:
    try:
        from transformers import AutoModelForImageTextToText, AutoProcessor
    except ImportError:
        raise UserError(
            "generate.captioner needs transformers: pip install transformers."
        ) from None
    with loading("generate.captioner", f"{model} as an image-text-to-text model"):
        processor = AutoProcessor.from_pretrained(model, trust_remote_code=False)
        # Not .to(dtype) afterwards: BLIP-2 keeps its Q-Former in fp32 under fp16.
        loaded = AutoModelForImageTextToText.from_pretrained(
            model, dtype=dtype, trust_remote_code=False
        )
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise UserError(f"generate.captioner: {model} has no image processor and tokenizer.")
    return processor, loaded.eval()


def _chat(prompt: str) -> list[dict[str, Any]]:
    """A question about the image, and an answer that begins with the prompt."""
    asked = [{"type": "image"}, {"type": "text", "text": ASKED}]
    return [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [{"type": "text", "text": prompt}]},
    ]


def _greedy(given: Any) -> Any:
    """The checkpoint's special tokens, and none of its ways to decode."""
    from transformers import GenerationConfig

    tokens = {k: v for k, v in given.to_dict().items() if k.endswith("_token_id")}
    return GenerationConfig(do_sample=False, num_beams=1, **tokens)


def _square(size: Any) -> int | None:
    """The side in pixels of what an image processor makes, None if that depends on the image."""
    height, width = size.get("height"), size.get("width")
    return int(height) if height is not None and height == width else None
