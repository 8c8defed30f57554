"""A BLIP-2, and its relatives, of some 0.1 M random parameters: the whole layout on disk, nothing
learned. They do see: vision towers and query tokens are not the near-zero ones of the defaults."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tiny_sd import merges_of
from tokenizers import pre_tokenizers
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    GPT2Tokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    OPTConfig,
)

WORDS = ("a", "photo", "of", "which", "is", "cat", "dog", "ankle", "boot", "red", "on", "grass")
SIDE = 32
QUERIES = 4
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_blip2(
    path: Path, *, queries: int | None = QUERIES, padding_side: str = "left", seed: int = 0
) -> Path:
    """The processor says that it puts in `queries`; the model always reads QUERIES."""
    torch.manual_seed(seed)
    tokenizer = _gpt2(WORDS, padding_side)
    images = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    processor = Blip2Processor(images, tokenizer, num_query_tokens=queries)
    model = Blip2ForConditionalGeneration(
        Blip2Config(
            num_query_tokens=QUERIES,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            vision_config=Blip2VisionConfig(
                **_SMALL, intermediate_size=64, image_size=SIDE, patch_size=8, initializer_range=0.1
            ).to_dict(),
            qformer_config=Blip2QFormerConfig(
                **_SMALL, vocab_size=64, intermediate_size=64, encoder_hidden_size=32,
                max_position_embeddings=64, initializer_range=0.1,
            ).to_dict(),
            text_config=OPTConfig(
                **_SMALL, vocab_size=len(tokenizer), ffn_dim=64, max_position_embeddings=128,
                word_embed_proj_dim=32, bos_token_id=2, eos_token_id=2, pad_token_id=1,
                init_std=0.3,
            ).to_dict(),
        )
    )  # fmt: skip
    torch.nn.init.normal_(model.query_tokens)
    torch.nn.init.normal_(model.language_projection.weight)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def save_blip(path: Path, *, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    words, tokenizer = _bert()
    model = BlipForConditionalGeneration(
        BlipConfig(
            text_config={
                **_SMALL, "vocab_size": len(words), "encoder_hidden_size": 32,
                "intermediate_size": 64, "projection_dim": 32, "max_position_embeddings": 64,
                "bos_token_id": words.index("[DEC]"), "eos_token_id": words.index("[SEP]"),
                "sep_token_id": words.index("[SEP]"), "pad_token_id": 0, "initializer_range": 0.3,
            },
            vision_config={
                **_SMALL, "intermediate_size": 64, "projection_dim": 32, "image_size": SIDE,
                "patch_size": 8, "initializer_range": 0.1,
            },
            projection_dim=32, image_text_hidden_size=32,
        )
    )  # fmt: skip
    model.save_pretrained(path)
    images = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    BlipProcessor(images, tokenizer).save_pretrained(path)
    return path


def save_git(path: Path, *, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    words, tokenizer = _bert()
    GitForCausalLM(
        GitConfig(
            vision_config={**_SMALL, "intermediate_size": 64, "image_size": SIDE, "patch_size": 8},
            **_SMALL, intermediate_size=64, vocab_size=len(words), max_position_embeddings=64,
            bos_token_id=words.index("[CLS]"), eos_token_id=words.index("[SEP]"), pad_token_id=0,
            initializer_range=0.3,
        )
    ).save_pretrained(path)  # fmt: skip
    GitProcessor(_clip_images(), tokenizer).save_pretrained(path)
    return path


def save_llava(path: Path, *, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tokenizer = _gpt2(WORDS, "left")
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                **_SMALL, intermediate_size=64, image_size=SIDE, patch_size=8
            ),
            text_config=LlamaConfig(
                **_SMALL, intermediate_size=64, vocab_size=len(tokenizer), initializer_range=0.3,
                pad_token_id=1, bos_token_id=2, eos_token_id=2,
            ),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        )
    ).save_pretrained(path)  # fmt: skip
    LlavaProcessor(
        _clip_images(), tokenizer, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(path)  # fmt: skip
    return path


def _clip_images() -> CLIPImageProcessor:
    side = {"height": SIDE, "width": SIDE}
    return CLIPImageProcessor(size=side, crop_size=side)


def _bert() -> tuple[list[str], BertTokenizer]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    words = [*special, *WORDS, "t", "-", "shirt", ",", "and", "dark", "wide", "plain"]
    return words, BertTokenizer(vocab={w: i for i, w in enumerate(words)}, model_max_length=64)


def _gpt2(words: Sequence[str], padding_side: str) -> GPT2Tokenizer:
    """OPT's kind: byte-level BPE whose merges build each word, at a start and after a space."""
    merges, merged = merges_of(spelling for word in words for spelling in (word, f"Ġ{word}"))
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [token for token in merged if token not in tokens]
    return GPT2Tokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, unk_token="</s>",
        bos_token="</s>", eos_token="</s>", pad_token="<pad>", padding_side=padding_side,
    )  # fmt: skip
