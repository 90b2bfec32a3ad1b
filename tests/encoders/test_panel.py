"""Every encoder of the panel through its real loading path, on small random checkpoints; and the real models' sizes."""

from __future__ import annotations

import copy
import math
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("timm", reason="the panel's packages are not installed: pip install 'irdm[panel]'")

import timm  # noqa: E402
from tiny_panel import dreamsim_vit, timm_model, tiny  # noqa: E402

from irdm.conditions import Classes  # noqa: E402
from irdm.data.base import SplitConfig, split_dataset  # noqa: E402
from irdm.encoders import PanelBatteryConfig  # noqa: E402
from irdm.encoders import panel as panel_module  # noqa: E402
from irdm.encoders.base import encoder_identity  # noqa: E402
from irdm.encoders.families import DreamSim, LatentPatches, TimmFeatures, load_encoder  # noqa: E402
from irdm.encoders.panel import METRICS_ONLY, PANEL, fingerprint  # noqa: E402

TIMM = [name for name, entry in PANEL.items() if entry.family == "timm"]


def pictures(n: int, side: int, seed: int = 0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def normalised(entry, images):
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in entry.normalisation)
    return (images - mean) / std


# --- what every encoder promises -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PANEL)
def test_an_encoder_keeps_the_contract(name, loaded):
    entry, encoder = loaded(name)
    encoder.train()
    images = pictures(3, 40).requires_grad_()  # another size than the encoder's
    features = encoder(images)
    assert features.shape == (3, entry.dim) and features.dtype == torch.float32 and encoder.name == name
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    assert torch.allclose(features[1:2], encoder(images[1:2]), rtol=1e-4, atol=1e-5), "rows depend on each other"
    assert (features[0] - features[1]).abs().max() > 1e-4, "blind to the image"
    (gradient,) = torch.autograd.grad(features[0].square().sum(), images)
    assert gradient.isfinite().all() and gradient[0].any() and not gradient[1:].any()


@pytest.mark.parametrize("name", ["mae", "inception", "flux_vae", "dreamsim"])
def test_the_gradient_is_that_of_the_features(name, loaded):
    """A central difference along the gradient, in float32."""
    entry, encoder = loaded(name)
    images = (0.25 + 0.5 * pictures(1, entry.resolution)).requires_grad_()
    weights = torch.randn(entry.dim)
    (gradient,) = torch.autograd.grad(encoder(images) @ weights, images)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        ahead, behind = (encoder(images + sign * 0.03 * direction) @ weights for sign in (1, -1))
    assert ((ahead - behind) / 0.06).item() == pytest.approx(gradient.norm().item(), rel=0.1)


def test_a_copy_of_an_encoder_stands_alone(loaded):
    _, encoder = loaded("mae")
    images = pictures(1, 32)
    twin = copy.deepcopy(encoder)
    next(twin.parameters()).data.zero_()
    assert not torch.equal(twin(images), encoder(images))
    assert set(twin.state_dict()) == {f"network.features.model.{key}" for key in timm_model(tiny("mae")).state_dict()}


def test_grey_images_are_refused(loaded):
    with pytest.raises(ValueError, match="'mae' looks at colour images.*1 channel"):
        loaded("mae")[1](torch.rand(2, 1, 32, 32))


# --- preprocessing ---------------------------------------------------------------------------------------------------


# --- pooling, against timm's own other paths to the same numbers -----------------------------------------------------


def hooked(module: nn.Module, model: nn.Module, images):
    """What `module` returns while `model` looks at images."""
    kept = []
    handle = module.register_forward_hook(lambda _, __, output: kept.append(output))
    model(images)
    handle.remove()
    return kept[0]


def plain(entry, encoder, **arguments):
    """timm's own model with the encoder's weights and another `global_pool`, no classifier."""
    model = timm_model(entry, num_classes=0, **arguments).eval()
    state = {k: v for k, v in encoder.network.features.model.state_dict().items() if k in model.state_dict()}
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_pooling(name, loaded):
    entry, encoder = loaded(name)
    images = pictures(2, entry.resolution)
    inputs = normalised(entry, images)
    if entry.pooling == "class token":
        expected = plain(entry, encoder, global_pool="token")(inputs)
    elif name == "mae":
        expected = plain(entry, encoder, global_pool="avg", fc_norm=False)(inputs)
    elif entry.pooling == "patch mean":
        expected = plain(entry, encoder)(inputs)  # timm's default for AIMv2
    elif entry.pooling == "attention pool":
        model = plain(entry, encoder)
        assert model.global_pool == "map"
        expected = hooked(model.attn_pool, model, inputs)
    elif entry.pooling == "spatial mean":
        model = plain(entry, encoder)
        grid = hooked(model.stages[-1], model, inputs)
        expected = torch.stack([grid[:, :, i, j] for i in range(2) for j in range(2)]).mean(0)
    else:
        assert entry.pooling == "summary tokens"
        model = plain(entry, encoder)
        assert model.num_prefix_tokens == 8
        tokens = hooked(model.blocks[-1], model, inputs)
        expected = torch.cat([tokens[:, 0], tokens[:, 1], tokens[:, 2]], 1)
    assert torch.allclose(encoder(images), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_dinov3_is_not_pooled_as_timm_does(loaded):
    entry, encoder = loaded("dinov3_l")
    images = pictures(2, entry.resolution)
    model = plain(entry, encoder)
    assert model.global_pool == "avg"
    assert not torch.allclose(encoder(images), model(normalised(entry, images)), atol=1e-3)


@torch.no_grad()
def test_webssl_is_the_normalised_class_token(loaded):
    entry, encoder = loaded("webssl_dino_1b")
    images = pictures(2, entry.resolution)
    model = encoder.network.features.model
    tokens = model.encoder(model.embeddings(normalised(entry, images)))
    expected = model.layernorm(getattr(tokens, "last_hidden_state", tokens)[:, 0])
    assert torch.allclose(encoder(images), expected, atol=1e-5)


@torch.no_grad()
def test_vae_is_the_patch_mean_of_the_latent_mean(loaded):
    entry, encoder = loaded("flux_vae")
    images = pictures(2, entry.resolution)
    moments = encoder.network.features.vae.encoder(2 * images - 1)
    mean = moments[:, :16]
    assert mean.shape == (2, 16, 8, 8)
    expected = mean.reshape(2, 16, 2, 4, 2, 4).mean((3, 5)).reshape(2, 64)
    assert torch.allclose(encoder(images), expected, atol=1e-5)


@torch.no_grad()
def test_inception_is_that_of_torch_fidelity(folder, loaded):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    small, _ = loaded("inception")
    entry = replace(small, resolution=299)
    path = folder / "inception" / entry.weights.files[0].name
    library = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    octets = torch.randint(256, (2, 3, 48, 40), dtype=torch.uint8)
    (expected,) = library(octets)
    apart = (expected[0] - expected[1]).abs().max()
    error = (load_encoder(entry, folder)(octets / 255) - expected).abs().max()
    assert error < 1e-3 * apart, f"off by {error}, where two pictures are {apart} apart"


@torch.no_grad()
def test_dreamsim_is_that_of_the_package(folder, loaded, monkeypatch, tmp_path):
    """The package's own constructor, with peft, on the same files; only DINO's remote code is replaced."""
    import dreamsim
    from dreamsim.feature_extraction import load_clip_as_dino, load_open_clip_as_dino

    entry, encoder = loaded("dreamsim")
    with zipfile.ZipFile(folder / "dreamsim" / "dreamsim_ensemble_checkpoint.zip") as release:
        release.extractall(tmp_path)
    head = {"mlp.0.weight": 1, "mlp.0.bias": 1, "mlp.2.weight": 1, "mlp.2.bias": 1, "mlp.4.weight": 1, "mlp.4.bias": 1}
    student = {f"module.head.{key}": torch.zeros(1) for key in [*head, "last_layer.weight"]}
    torch.save({"student": student}, tmp_path / "dino_vitb16_pretrain.pth")
    dino = dreamsim_vit(0, dict(entry.arguments))
    dino.load_state_dict(torch.load(folder / "dreamsim" / "dino_vitbase16_pretrain.pth", weights_only=True))
    monkeypatch.setattr(torch.hub, "load", lambda *args: dino)
    for module in (load_clip_as_dino, load_open_clip_as_dino):
        monkeypatch.setattr(module, "vit_base", lambda patch_size: dreamsim_vit(0, dict(entry.arguments)))
    model, _ = dreamsim.dreamsim(device="cpu", cache_dir=str(tmp_path), normalize_embeds=False)
    images = pictures(2, entry.resolution)
    assert torch.allclose(encoder(images), model.embed(images), rtol=1e-4, atol=1e-5)


# --- the real models, without weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_timm_has_the_model_and_it_gives_the_tables_numbers(name):
    entry = PANEL[name]
    assert timm.is_model_pretrained(entry.model)
    assert entry.weights.repo == timm.get_pretrained_cfg(entry.model).hf_hub_id
    published = timm.get_pretrained_cfg(entry.model)
    assert (published.mean, published.std) == entry.normalisation
    with torch.device("meta"):
        model = TimmFeatures(timm.create_model(entry.model, **entry.arguments).eval(), entry.pooling)
        assert model(torch.zeros(2, 3, entry.resolution, entry.resolution)).shape == (2, entry.dim)
    parameters = sum(p.numel() for p in model.parameters())
    if name != "clip":  # whose file holds the text tower too
        assert 4e-9 * parameters == pytest.approx(entry.weights.gigabytes, rel=0.03)


@torch.no_grad()
def test_the_other_families_give_the_tables_numbers():
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    sizes = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16}
    # its constructor reads numbers off tensors, which those of meta do not have
    vits = [dreamsim_vit(index, dict(PANEL["dreamsim"].arguments)).to("meta") for index in range(3)]
    with torch.device("meta"):
        vae = AutoencoderKL(**blocks, **sizes, use_quant_conv=False, use_post_quant_conv=False)
        dreamsim = DreamSim(vits, [torch.zeros(768, 512)] * 2)
        for entry, model in ((PANEL["flux_vae"], LatentPatches(vae)), (PANEL["dreamsim"], dreamsim)):
            images = torch.zeros(2, 3, entry.resolution, entry.resolution)
            assert model(images).shape == (2, entry.dim)
    assert 4 * sum(p.numel() for p in vae.parameters()) > PANEL["flux_vae"].weights.gigabytes * 1e9


def test_the_table_is_the_papers():
    """Table 5: ten that train, four held out, and these dimensions."""
    assert [entry.held_out for entry in PANEL.values()] == [False] * 10 + [True] * 4
    dims = [2048, 1024, 1024, 1024, 1024, 1024, 1152, 1536, 1536, 1792, 1024, 1152, 3072, 1024]
    sides = [299, 224, 224, 256, 224, 224, 224, 224, 224, 224, 256, 384, 256, 256]
    assert [entry.dim for entry in PANEL.values()] == dims
    assert [entry.resolution for entry in PANEL.values()] == sides
    assert [name for name, entry in PANEL.items() if entry.precision == "float32"] == ["inception"]
    assert PANEL["flux_vae"].resize == "bilinear" and PANEL["inception"].resize == "tf1"


# --- the battery -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_panel(folder, loaded, monkeypatch):
    names = ("mae", "dinov2", "flux_vae")
    monkeypatch.setattr(panel_module, "PANEL", {name: loaded(name)[0] for name in names})
    return PanelBatteryConfig(held_in=("mae",), held_out=("dinov2", "flux_vae"), weights=folder)


def colours(channels: int = 3):
    images = torch.rand(12, channels, 16, 16)
    return split_dataset("noise", images, Classes(torch.arange(12) % 2, ("a", "b")), SplitConfig())


def test_the_battery_is_exactly_the_panel_asked_for(small_panel):
    lines = []
    dataset = colours()
    battery = small_panel.fit(dataset, progress=lines.append)
    assert battery.held_in == ("mae",) and battery.held_out == ("dinov2", "flux_vae") and len(lines) == 3
    assert {name: encoder(dataset.val.images).shape[1] for name, encoder in battery.encoders.items()} == {
        "mae": 32,
        "dinov2": 32,
        "flux_vae": 64,
    }


def test_encoders_that_stay_in_main_memory_are_the_same_encoders(small_panel, folder):
    here, there = small_panel.fit(), small_panel.model_copy(update={"offload": True}).fit()
    assert small_panel.identity() == small_panel.model_copy(update={"offload": True}).identity()
    there.to("meta")
    for name, encoder in there.encoders.items():
        found = []
        for one in (here[name], encoder):
            assert encoder_identity(one, folder) == encoder_identity(here[name], folder)
            images = pictures(2, 16).requires_grad_()
            network = one.network
            network.mean, network.std = here[name].network.mean, here[name].network.std  # which "meta" has taken
            features = one(images)
            features.square().sum().backward()
            found.append((features, images.grad))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        side = encoder.network.entry.resolution
        visited = encoder.network.features(torch.zeros(1, 3, side, side, device="meta"))
        assert visited.is_meta, "the numbers come to where the images are"
        assert not any(p.is_meta or p.requires_grad for p in encoder.network.features.parameters()), "and stay here"


def test_a_missing_encoder_never_shrinks_the_panel(small_panel, tmp_path):
    with pytest.raises(
        ValueError, match="(?s)3 of the 3 encoders cannot be loaded.*'mae'.*'dinov2'.*'flux_vae'"
    ) as found:
        small_panel.model_copy(update={"weights": tmp_path}).fit(colours())
    assert str(found.value).count("irdm encoders fetch") == 3


def test_the_panel_refuses_grey_data_and_unknown_names(small_panel):
    with pytest.raises(ValueError, match="noise has 1 channel.*local"):
        small_panel.fit(colours(1))
    with pytest.raises(ValueError, match="no encoder \\['dinov9'\\]"):
        PanelBatteryConfig(held_in=("dinov9",))


def test_the_default_is_the_whole_panel():
    config = PanelBatteryConfig()
    assert len(config.held_in) == 10 and len(config.held_out) == 4 and config.names == tuple(PANEL)


def test_some_of_the_panel_keep_their_sides():
    some = PanelBatteryConfig().some(["dinov2", "mae", "inception"])
    assert some.held_in == ("inception", "mae") and some.held_out == ("dinov2",)
    with pytest.raises(ValueError, match="no encoder clip; choose from inception, mae, dinov2"):
        some.some(["clip"])


def test_where_weights_lie_is_no_part_of_the_identity(tmp_path):
    config = PanelBatteryConfig(held_in=("mae",), weights=tmp_path, compile=False)
    assert config.identity() == {"kind": "panel", "held_in": ["mae"]}


def test_a_pretrained_encoder_is_identified_by_its_files_and_its_row(folder, loaded):
    entry, encoder = loaded("mae")
    twin = load_encoder(entry, folder, compile=True)
    assert encoder_identity(encoder, folder) == encoder_identity(twin, folder) == fingerprint(entry, folder)
    assert encoder_identity(encoder, folder) != encoder_identity(loaded("dinov2")[1], folder)


def test_the_fingerprint_follows_what_decides_the_features(folder, loaded, tmp_path):
    entry, _ = loaded("mae")
    first = fingerprint(entry, folder)
    assert first == fingerprint(replace(entry, held_out=True), folder)
    changed = [
        replace(entry, pooling="class token"),
        replace(entry, resolution=64),
        replace(entry, normalisation=((0.0,) * 3, (1.0,) * 3)),
    ]
    other = tmp_path / "mae"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"other weights")
    from irdm.encoders.weights import Weights

    with pytest.raises(ValueError, match="not known yet"):
        fingerprint(entry, tmp_path)
    Weights("mae", entry.weights, tmp_path).fetch()
    prints = {first, fingerprint(entry, tmp_path), *(fingerprint(row, folder) for row in changed)}
    assert len(prints) == 2 + len(changed)


# --- weights that do not belong --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mae", "convnext", "siglip2", "cradiov3_l"])
@pytest.mark.parametrize("change", ["missing", "extra"])
def test_keys_that_do_not_fit_are_named(name, change, folder, loaded, tmp_path):
    from safetensors.torch import load_file, save_file

    from irdm.encoders.weights import Weights

    entry, _ = loaded(name)
    state = load_file(folder / name / "model.safetensors")
    key = sorted(key for key in state if not key.startswith("head"))[-1]
    if change == "missing":
        del state[key]
    else:
        key = "surplus.weight"
        state[key] = torch.zeros(2)
    (tmp_path / name).mkdir()
    save_file(state, tmp_path / name / "model.safetensors")
    Weights(name, entry.weights, tmp_path).fetch()
    with pytest.raises(ValueError, match=f"'{name}' do not fit its architecture") as found:
        load_encoder(entry, tmp_path)
    assert key in str(found.value)


@pytest.mark.parametrize(
    ("name", "file", "key"),
    [
        ("webssl_dino_1b", "model.safetensors", "layernorm.weight"),
        ("flux_vae", "vae/diffusion_pytorch_model.safetensors", "encoder.conv_in.bias"),
    ],
)
def test_loaders_that_only_warn_are_made_strict(name, file, key, folder, loaded, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    from irdm.encoders.weights import Weights

    entry, _ = loaded(name)
    shutil.copytree(folder / name, tmp_path / name)
    (tmp_path / name / "manifest.json").unlink()
    state = load_file(folder / name / file)
    state["surplus"] = state.pop(key)
    save_file(state, tmp_path / name / file, metadata={"format": "pt"})
    Weights(name, entry.weights, tmp_path).fetch()
    with pytest.raises(ValueError, match=f"'{name}' do not fit.*{key}.*surplus"):
        load_encoder(entry, tmp_path)


def test_a_dimension_that_the_table_does_not_have_is_refused(folder, loaded):
    entry, _ = loaded("mae")
    with pytest.raises(ValueError, match="'mae' gives features of shape \\[1, 32\\].*\\[1, 33\\]"):
        load_encoder(replace(entry, dim=33), folder)


def test_low_rank_updates_account_for_every_key():
    from irdm.encoders.families import _low_rank_updates

    key = "base_model.model.extractor_list.1.model.blocks.0.attn.qkv.lora_"
    pair = {f"{key}A.weight": torch.ones(2, 3), f"{key}B.weight": torch.ones(4, 2)}
    updates = _low_rank_updates(dict(pair), 0.5)
    assert torch.equal(updates[1]["blocks.0.attn.qkv.weight"], torch.full((4, 3), 1.0)) and len(updates) == 1
    with pytest.raises(RuntimeError, match="modules_to_save"):
        _low_rank_updates(pair | {"base_model.model.mlp.modules_to_save.weight": torch.ones(1)}, 0.5)


def test_half_precision_and_compilation_are_for_cuda_only(folder, loaded, monkeypatch):
    """Without a device: the choice itself is tested, on tensors that say they are on CUDA."""
    entry, encoder = loaded("mae")
    compiled = load_encoder(entry, folder, compile=True)
    images = pictures(2, 32)
    assert compiled.network.compiled is not None
    assert torch.equal(compiled(images), encoder(images)), "compiled or halved on a CPU"
    seen = []
    monkeypatch.setattr(torch, "autocast", lambda device, dtype, enabled: seen.append(enabled) or _Nothing())
    encoder(images)
    assert seen == [False]


class _Nothing(SimpleNamespace):
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def test_tiny_panel_covers_the_whole_panel():
    assert all(math.prod((tiny(name).dim, tiny(name).resolution)) for name in [*PANEL, *METRICS_ONLY])
