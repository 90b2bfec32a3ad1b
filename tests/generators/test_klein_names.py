"""Names of klein's weights: diffusers' own converter reads ours, both ways are exact, and no name is left over."""

from __future__ import annotations

import pytest
import torch

from irdm.generators.klein_folder import open_folder
from irdm.generators.klein_names import PREFIXES, bfl_name, to_bfl, to_diffusers
from irdm.generators.klein_tiny import cached_tiny


@pytest.fixture(scope="module")
def state():
    return open_folder(cached_tiny()).load_transformer(torch.float32).state_dict()


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_diffusers_own_converter_reads_what_we_write(state):
    from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers

    assert same(convert_flux2_transformer_checkpoint_to_diffusers(to_bfl(state)), state)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_there_and_back_to_the_bit_under_every_prefix(state, prefix):
    bfl = to_bfl(state)
    assert len(state) == 53 and len(bfl) == 9 + 2 * 12 + 3 * 4
    assert same(to_diffusers({prefix + name: tensor for name, tensor in bfl.items()}), state)
    assert same(to_bfl(to_diffusers(bfl)), bfl)


def test_the_published_model_has_149_names():
    from diffusers import Flux2Transformer2DModel

    with torch.device("meta"):
        real = Flux2Transformer2DModel(
            num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
        )
        assert sum(p.numel() for p in real.parameters()) == 3_875_544_576
        assert len(to_bfl(real.state_dict())) == 149


def test_unknown_names_are_refused(state):
    bfl = to_bfl(state)
    with pytest.raises(ValueError, match=r"1 of 46 names are none of FLUX.2 \[klein\]: double_blocks.0.img_mod.lin"):
        to_diffusers({**bfl, "double_blocks.0.img_mod.lin.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="2 of 2 names"):  # a weight where a scale belongs, a bias where there is none
        to_diffusers({"single_blocks.0.norm.key_norm.weight": torch.zeros(1), "img_in.bias": torch.zeros(1)})
    with pytest.raises(ValueError, match="attn.to_x is no part of FLUX.2"):
        to_bfl({"transformer_blocks.0.attn.to_x.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="one of q, k and v is missing"):
        to_bfl({"transformer_blocks.0.attn.to_q.weight": torch.zeros(1, 1)})


def test_names_of_modules():
    assert bfl_name("transformer_blocks.4.attn.add_k_proj") == ("double_blocks.4.txt_attn.qkv", 1)
    assert bfl_name("single_transformer_blocks.2.attn.to_out") == ("single_blocks.2.linear2", None)
    assert bfl_name("norm_out.linear") == ("final_layer.adaLN_modulation.1", None)
