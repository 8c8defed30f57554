"""Captioners that were tuned to talk, of random parameters: LLaVA and Qwen2-VL with their chats."""

from pathlib import Path

import tiny_blip2
import torch
from transformers import (
    AutoProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

LLAVA = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}"
)
QWEN = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
)
SIGNS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
         "<|video_pad|>"]  # fmt: skip


def save_llava(path: Path) -> Path:
    processor = AutoProcessor.from_pretrained(tiny_blip2.save_llava(path))
    processor.chat_template = LLAVA
    processor.save_pretrained(path)
    return path


def save_qwen2_vl(path: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = tiny_blip2._gpt2(tiny_blip2.WORDS, "left")
    tokenizer.add_tokens(SIGNS, special_tokens=True)
    number = dict(zip(SIGNS, tokenizer.convert_tokens_to_ids(SIGNS), strict=True))
    Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config={
                "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(tokenizer),
                "max_position_embeddings": 512, "initializer_range": 0.3, "bos_token_id": 2,
                "eos_token_id": 2, "pad_token_id": 1,
                "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
            },
            vision_config={
                "depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 8,
                "spatial_merge_size": 1, "temporal_patch_size": 2, "initializer_range": 0.1,
            },
            image_token_id=number["<|image_pad|>"], video_token_id=number["<|video_pad|>"],
            vision_start_token_id=number["<|vision_start|>"],
            vision_end_token_id=number["<|vision_end|>"],
        )
    ).save_pretrained(path)  # fmt: skip
    patches = {
        "patch_size": 8, "merge_size": 1, "temporal_patch_size": 2,
        "size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
    }  # fmt: skip
    images, videos = Qwen2VLImageProcessor(**patches), Qwen2VLVideoProcessor(**patches)
    Qwen2VLProcessor(images, tokenizer, videos, chat_template=QWEN).save_pretrained(path)
    return path
