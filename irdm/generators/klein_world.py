"""The klein of the captioned world: the published one's classes at 16x16 pixels, with a tokenizer and a text encoder of
the world's own language. Its transformer and text encoder are random until `irdm train world-teacher`.

Its transformer tells the picture where klein's tells a velocity (`irdm.generators.klein_picture`). Its VAE is not
learned: it is the identity, written in the layers of diffusers' own, so that latents are pixels and the exact judge
reads what the transformer drew. A token is 2x2 pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from irdm.generators.klein_tiny import SPECIAL
from irdm.world import SIDE
from irdm.world.language import LONGEST, TOKENS

if TYPE_CHECKING:
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline
    from transformers import Qwen2Tokenizer, Qwen3Config

READING = 9  # layers of the text encoder that read; klein looks at the states after layers 9, 18 and 27
LAYERS = 28
LARGE = 256.0  # what the VAE's normalisation divides by, so that pixels matter little to it


def world_pipeline(width: int = 64, heads: int = 2, blocks: tuple[int, int] = (1, 4)) -> Flux2KleinPipeline:
    """A whole pipeline; `blocks` are those of two streams and those of one."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
    from transformers import Qwen3ForCausalLM

    from irdm.generators.klein_picture import PictureTransformer

    tokenizer = world_tokenizer()
    reader = reader_config(len(tokenizer))
    transformer = PictureTransformer(
        in_channels=12,
        num_layers=blocks[0],
        num_single_layers=blocks[1],
        attention_head_dim=width // heads,
        num_attention_heads=heads,
        joint_attention_dim=3 * reader.hidden_size,
        axes_dims_rope=(width // heads // 4,) * 4,
        timestep_guidance_channels=64,
        guidance_embeds=False,
    )
    nn.init.zeros_(transformer.proj_out.weight)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    text_encoder = Qwen3ForCausalLM(reader)
    return Flux2KleinPipeline(scheduler, identity_vae(), text_encoder, tokenizer, transformer, is_distilled=True)


def reader_config(words: int, layers: int = LAYERS) -> Qwen3Config:
    """Sizes of the text encoder."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=words,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.07,
    )


def world_tokenizer() -> Qwen2Tokenizer:
    """A token a word or phrase of the world; other text is read byte by byte. A caption is given as it is."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer
    from transformers.tokenization_utils_base import AddedToken

    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *SPECIAL]
    tokenizer = Qwen2Tokenizer(
        vocab={symbol: number for number, symbol in enumerate(symbols)},
        merges=[],
        padding_side="right",
        model_max_length=LONGEST,
    )
    tokenizer.add_tokens([AddedToken(text, single_word=True, lstrip=True, normalized=False) for text in TOKENS])
    tokenizer.chat_template = "{%- for message in messages -%}{{ message.content }}{%- endfor -%}"
    return tokenizer


@torch.no_grad()
def identity_vae() -> AutoencoderKLFlux2:
    """Encoder and decoder that change nothing.

    A pixel x is carried as x and -x, for silu(x) - silu(-x) = x; their mean is 0, and two channels of +LARGE and -LARGE
    make their variance the same for every picture, to 1e-4 of x. Residual blocks add nothing.
    """
    from diffusers import AutoencoderKLFlux2

    vae = AutoencoderKLFlux2(
        block_out_channels=(8,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        layers_per_block=1,
        latent_channels=3,
        norm_num_groups=1,
        sample_size=SIDE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    for weights in vae.parameters():
        weights.zero_()
    parts: Any = (vae.encoder, vae.decoder)
    for part in parts:
        into, norm, out = part.conv_in, part.conv_norm_out, part.conv_out
        for channel in range(3):
            for place, sign in ((channel, 1.0), (channel + 3, -1.0)):
                into.weight[place, channel, 1, 1] = out.weight[channel, place, 1, 1] = sign
        into.bias[6:] = torch.tensor([LARGE, -LARGE])
        norm.weight.fill_(LARGE / 2)  # the spread of the eight channels
    parts[0].conv_out.bias[3:] = -30.0  # logarithms of variances: latents are not drawn, but known
    return vae.eval()
