"""A Qwen2.5-VL of one to three million parameters with its own tokenizer and processor.

It trains in minutes on two CPU cores; transformers, vLLM and PEFT load its folder like any other
Qwen2.5-VL checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from rlsys.config.schema import TinyConfig

END, START, PAD = "<|im_end|>", "<|im_start|>", "<|pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
SPECIAL_TOKENS = [PAD, START, END, VISION_START, VISION_END, IMAGE, VIDEO]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on ``texts``; any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain(texts, ["user\n", "assistant\n", "system\n"] * 2), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens={
            "image_token": IMAGE,
            "video_token": VIDEO,
            "vision_bos_token": VISION_START,
            "vision_eos_token": VISION_END,
            "im_start_token": START,
        },
        padding_side="right",
    )


def tiny_processor(texts: Iterable[str], sizes: TinyConfig) -> Qwen2_5_VLProcessor:
    """The processor of a model made on ``texts``."""
    tokenizer = train_tokenizer(texts, sizes.vocab)
    tokenizer.chat_template = CHAT_TEMPLATE
    pixels = {"shortest_edge": 4 * 784, "longest_edge": sizes.max_image_tokens * 784}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels, patch_size=14, merge_size=2),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=pixels, patch_size=14, merge_size=2),
        chat_template=CHAT_TEMPLATE,
    )


def build_tiny_vlm(folder: Path, texts: Iterable[str], sizes: TinyConfig, seed: int) -> None:
    """Write a randomly initialised checkpoint (weights, tokenizer, processor) to ``folder``."""
    processor = tiny_processor(texts, sizes)
    tokenizer = processor.tokenizer
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    config = tiny_configuration(ids, len(tokenizer), sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def tiny_configuration(
    token_id: Mapping[str, int], vocab: int, sizes: TinyConfig
) -> Qwen2_5_VLConfig:
    """Args: token_id: of the special tokens; vocab: size of the vocabulary."""
    heads = sizes.hidden // 32
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocab,
            "hidden_size": sizes.hidden,
            "intermediate_size": 2 * sizes.hidden,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
            "tie_word_embeddings": True,
            "initializer_range": sizes.init_std,
            "bos_token_id": token_id[START],
            "eos_token_id": token_id[END],
            "pad_token_id": token_id[PAD],
        },
        vision_config={
            "depth": sizes.vision_layers,
            "hidden_size": sizes.vision_hidden,
            "intermediate_size": 2 * sizes.vision_hidden,
            "num_heads": sizes.vision_hidden // 32,
            "out_hidden_size": sizes.hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": list(range(sizes.vision_layers)),
            "initializer_range": sizes.init_std,
        },
        image_token_id=token_id[IMAGE],
        video_token_id=token_id[VIDEO],
        vision_start_token_id=token_id[VISION_START],
        vision_end_token_id=token_id[VISION_END],
        tie_word_embeddings=True,
        initializer_range=sizes.init_std,
    )
