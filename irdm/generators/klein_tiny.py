"""A FLUX.2 [klein] of random weights that draws 32x32 pixels: the published one's classes, small enough for a test.

Everything that runs on it runs on the published model: only the folder differs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from irdm.files import cache_dir, replaced_folder

if TYPE_CHECKING:
    from diffusers import Flux2KleinPipeline
    from transformers import Qwen2Tokenizer

SIZE = 32  # pixels a side
VERSION = 1  # of what is written below

# What Qwen3's own template makes of one user turn, with a generation prompt and without thinking.
TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}"
    "{%- endif -%}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")


def write_tiny(folder: Path, seed: int = 0, *, distilled: bool = True) -> Path:
    """Write a whole diffusers folder (transformer, VAE, text encoder, tokenizer, scheduler), and return it.

    The same seed gives the same weights. Raises OSError when it cannot be written.
    """
    with torch.device("cpu"), replaced_folder(folder) as partial:  # whoever asks may count on the meta device
        tiny_pipeline(seed, distilled=distilled).save_pretrained(partial)
    return folder


def cached_tiny() -> Path:
    """The folder of `write_tiny` in irdm's cache ($IRDM_CACHE, else ~/.cache/irdm), written when it is not there."""
    folder = cache_dir() / f"klein-tiny-{VERSION}"
    return folder if folder.is_dir() else write_tiny(folder)


def tiny_pipeline(seed: int = 0, *, distilled: bool = True) -> Flux2KleinPipeline:
    """32x32 pixels are latents of 8x8 with 8 channels, and 4x4 tokens of 32 (the published one: 32x32 of 128)."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        reader = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=28,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=512,
            tie_word_embeddings=True,
        )
        vae = AutoencoderKLFlux2(
            block_out_channels=(8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            latent_channels=8,
            norm_num_groups=4,
            sample_size=SIZE,
        )
        mean, variance = vae.bn.running_mean, vae.bn.running_var
        assert mean is not None and variance is not None
        with torch.no_grad():  # statistics of latents: left at 0 and 1, a decoder that forgets them would look right
            mean.normal_()
            variance.uniform_(0.5, 2.0)
        transformer = Flux2Transformer2DModel(
            in_channels=32,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=48,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        )
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        text_encoder = Qwen3ForCausalLM(reader)
    return Flux2KleinPipeline(scheduler, vae, text_encoder, tokenizer, transformer, is_distilled=distilled)


def tiny_tokenizer() -> Qwen2Tokenizer:
    """Bytes, and the special tokens of Qwen: any text is read, a token a byte."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *SPECIAL]
    tokenizer = Qwen2Tokenizer(
        vocab={symbol: number for number, symbol in enumerate(symbols)},
        merges=[],
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        padding_side="right",
        model_max_length=512,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
