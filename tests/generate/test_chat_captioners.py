"""Captioners that talk: LLaVA and Qwen2-VL with chat templates, against greedy choice by hand."""

import pytest
import tiny_chat
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from autoaug_ray.generate import captions, prompts
from autoaug_ray.generate.captions import ASKED, Captioner

CPU = torch.device("cpu")
PREFIX = "a photo of a {name} which"
NAMES = ["cat", "dog", "ankle boot", "cat"]
KINDS = {
    "llava": (tiny_chat.save_llava, f"USER: <image>\n{ASKED} ASSISTANT: {PREFIX}"),
    "qwen2-vl": (
        tiny_chat.save_qwen2_vl,
        f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{ASKED}<|im_end|>\n"
        f"<|im_start|>assistant\n{PREFIX}",
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("talking")
    return {kind: save(root / kind) for kind, (save, _) in KINDS.items()}


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)


@torch.no_grad()
def by_hand(folder, text, image):
    """The most probable token after the text, again and again, from the logits alone."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    inputs = dict(processor(images=[image], text=[text], return_tensors="pt"))
    ids = inputs.pop("input_ids")
    inputs.pop("attention_mask")
    types = inputs.pop("mm_token_type_ids", None)
    start = ids.shape[1]
    for _ in range(captions.MAX_NEW_TOKENS):
        if types is not None:
            rest = torch.zeros(1, ids.shape[1] - types.shape[1], dtype=types.dtype)
            inputs["mm_token_type_ids"] = torch.cat([types, rest], dim=1)
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs)
        ids = torch.cat([ids, out.logits[:, -1:].argmax(-1)], dim=1)
        if ids[0, -1] == processor.tokenizer.eos_token_id:
            break
    said = processor.tokenizer.decode(ids[0, start:], skip_special_tokens=True)
    return prompts.clean(said.strip().partition("\n")[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_goes_on_from_the_prompt_whatever_the_batch(folders, images, kind):
    captioner = Captioner(str(folders[kind]), device=CPU)
    texts = captioner.continuations(images, NAMES, PREFIX)
    chat = KINDS[kind][1]
    assert texts == [
        by_hand(folders[kind], chat.format(name=name), image)
        for image, name in zip(images, NAMES, strict=True)
    ]
    assert len(set(texts)) == 4, "the image, too, decides"
    alone = [
        captioner.continuations(images[i : i + 1], NAMES[i : i + 1], PREFIX)[0] for i in range(4)
    ]
    assert alone == texts
