"""The encoders of published metrics, on small random weights, beside the codes that define them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("timm", reason="the panel's packages are not installed: pip install 'irdm[panel]'")

from safetensors.torch import load_file  # noqa: E402
from tiny_panel import openai_names, tiny, write_tiny  # noqa: E402

from irdm.conditions import Unconditional  # noqa: E402
from irdm.data import ImagesConfig  # noqa: E402
from irdm.data.base import TensorSplit  # noqa: E402
from irdm.encoders import PanelBatteryConfig  # noqa: E402
from irdm.encoders.families import load_encoder  # noqa: E402
from irdm.encoders.panel import GROUPS, LITERATURE, METRICS_ONLY, PANEL, entries, expanded, fingerprint  # noqa: E402
from irdm.encoders.resizing import RESIZES  # noqa: E402
from irdm.evaluation import embed  # noqa: E402
from irdm.metrics import Real  # noqa: E402
from irdm.metrics.frechet_distance import FrechetTarget  # noqa: E402
from irdm.metrics.tables import published  # noqa: E402
from irdm.ops.gaussian import Moments  # noqa: E402

SIZES = [(17, 17), (32, 32), (64, 48), (299, 299)]  # height, width


@pytest.fixture(scope="module")
def inception(folder):
    """FID's Inception with random weights, whole: ours and torch-fidelity's, of features or of logits."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = write_tiny("inception", folder).located(folder).verify().popitem()[1]
    write_tiny("inception_logits", folder)

    @cache
    def get(name, feature):
        (entry,) = entries([name])
        whole = load_encoder(replace(entry, weights=tiny(name).weights), folder)
        return whole, FeatureExtractorInceptionV3("inception", [feature], feature_extractor_weights_path=str(path))

    return SimpleNamespace(get=get, path=path)


def pictures(n, height, width, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (n, 3, height, width), dtype=np.uint8))


def written(path, octets):
    path.mkdir(parents=True)
    for number, picture in enumerate(octets):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path / f"{number:03d}.png")
    return path


# --- Inception at any size -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_features_of_files_of_any_size_are_those_of_torch_fidelity(size, inception, tmp_path):
    ours, theirs = inception.get("inception", "2048")
    octets = pictures(3, *size)
    places = {side: written(tmp_path / side, octets) for side in ("train", "val")}
    dataset = ImagesConfig(**places, channels=3).build()
    assert dataset.image_shape == (3, *size) and dataset.train.resized is None
    order = [int(dataset.train.source.names[row][:3]) for row in dataset.train.rows.tolist()]
    (expected,) = theirs(octets[order])
    found = embed(dataset.train, {"inception": ours}).features["inception"]
    assert (found - expected).abs().max() < 1e-5 * expected.std(), (found - expected).abs().max() / expected.std()


@torch.no_grad()
def test_logits_are_those_of_torch_fidelity_without_the_bias(inception):
    ours, theirs = inception.get("inception_logits", "logits_unbiased")
    octets = pictures(3, 40, 30)
    (expected,) = theirs(octets)
    assert expected.shape == (3, 1008) and (ours(octets / 255) - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size", SIZES)
def test_fid_is_that_of_torch_fidelity_at_any_size(size, inception, tmp_path):
    """24 and 24 images, in files, by the whole pipeline of either."""
    import torch_fidelity

    ours, _ = inception.get("inception", "2048")
    smooth = pictures(24, *size, seed=2) // 2 + 64
    fake, real = written(tmp_path / "fake", smooth), written(tmp_path / "real", pictures(24, *size, seed=1))
    expected = torch_fidelity.calculate_metrics(
        input1=str(fake),
        input2=str(real),
        fid=True,
        cuda=False,
        cache=False,
        save_cpu_ram=True,  # no worker processes
        verbose=False,
        batch_size=8,
        feature_extractor_weights_path=str(inception.path),
    )["frechet_inception_distance"]
    split = ImagesConfig(train=real, val=fake, channels=3).build()
    with torch.no_grad():
        rows = {side: embed(getattr(split, side), {"inception": ours}, micro_batch=8) for side in ("train", "val")}
    target = FrechetTarget.of(Moments.of([rows["train"].features["inception"]]))
    assert target.distance(rows["val"].features["inception"]) == pytest.approx(expected, rel=1e-5)


def test_images_that_are_resized_first_have_no_published_name(tmp_path):
    octets = pictures(6, 20, 24)
    places = {side: written(tmp_path / side, octets) for side in ("train", "val")}
    native, small = (ImagesConfig(**places, size=size).build() for size in (None, 16))
    assert (native.image_shape, native.val.resized) == ((3, 20, 24), None)
    assert (small.image_shape, small.val.resized) == ((3, 16, 16), "resized to 16 x 16")
    names = []
    for dataset in (native, small):
        train, val = (embed(split, {"inception": torch.nn.Flatten()}) for split in (dataset.train, dataset.val))
        names.append(published("FID", val, Real(train, val, {}, (), {})))
    assert names == ["FID", "FID (images resized to 16 x 16)"]


def test_a_picture_that_lies_on_its_side_has_the_size_it_is_shown_in(tmp_path):
    from PIL.Image import Exif

    turned = Exif()
    turned[0x0112] = 6
    for side in ("train", "val"):
        (tmp_path / side).mkdir()
        Image.new("RGB", (24, 20), (9, 99, 200)).save(tmp_path / side / "a.jpg", exif=turned)
        Image.new("RGB", (20, 24), (9, 99, 200)).save(tmp_path / side / "b.jpg")
    dataset = ImagesConfig(train=tmp_path / "train", val=tmp_path / "val").build()
    assert dataset.image_shape == (3, 24, 20) and dataset.train.resized is None


# --- DINOv2 and CLIP -------------------------------------------------------------------------------------------------


def shrunk(octets, resolution, square=False):
    """By Pillow, as the published codes prepare their images: uint8 [n, 3, r, r]."""
    found = []
    for picture in octets:
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        if square:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        found.append(np.asarray(image.resize((resolution, resolution), Image.Resampling.BICUBIC)).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(found))


def normalised(entry, images):
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in entry.normalisation)
    return (images - mean) / std


@pytest.mark.parametrize("size", [(40, 31), (20, 33), (28, 28)])
@pytest.mark.parametrize("square", [False, True])
def test_pictures_are_resized_in_eight_bits_by_pillow(size, square):
    octets = pictures(3, *size)
    found = RESIZES["pillow square" if square else "pillow"](octets / 255, 28)
    assert torch.equal(found, shrunk(octets, 28, square) / 255)


@torch.no_grad()
def test_dinov2_is_resized_as_dgm_eval_does_and_has_its_authors_positions(folder, loaded):
    """The positions against DINO's own code, in the package dreamsim, which DINOv2's follows."""
    from dreamsim.feature_extraction.vision_transformer import VisionTransformer

    entry, encoder = loaded("dinov2_224")
    state = load_file(folder / "dinov2" / "model.safetensors")
    dino = VisionTransformer(img_size=[56], patch_size=14, embed_dim=32, depth=1, num_heads=2)
    dino.pos_embed.data.copy_(state["pos_embed"])
    expected = dino.interpolate_pos_encoding(torch.zeros(1, 1 + 16, 32)[:, :5], 28, 28)
    model = encoder.network.features.model
    torch.testing.assert_close(model.pos_embed, expected)
    timms = load_encoder(write_tiny("dinov2", folder), folder).network.features.model.pos_embed
    assert (timms - expected).abs().max() > 1e-3, "timm resamples in another way"
    octets = pictures(2, 40, 31)
    tokens = model.forward_features(normalised(entry, shrunk(octets, 28) / 255))
    torch.testing.assert_close(encoder(octets / 255), tokens[:, 0])


@torch.no_grad()
def test_clip_is_the_projected_embedding_of_openais_model(folder, loaded):
    """Against the code of open_clip, from the same tensors under OpenAI's names."""
    from open_clip.transformer import QuickGELU
    from open_clip.transformer import VisionTransformer as OpenClip

    entry, encoder = loaded("clip_336")
    state = openai_names(load_file(folder / "clip_336" / "model.safetensors"))
    theirs = OpenClip(28, 14, 32, layers=2, heads=2, mlp_ratio=4, output_dim=768, act_layer=QuickGELU).eval()
    theirs.load_state_dict({key.removeprefix("visual."): tensor for key, tensor in state.items()})
    bias = load_file(folder / "clip_336" / "model.safetensors")["head.bias"]
    octets = pictures(2, 40, 31)
    expected = theirs(normalised(entry, shrunk(octets, 28, square=True) / 255)) + bias  # published: 0
    torch.testing.assert_close(encoder(octets / 255), expected, rtol=1e-4, atol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 0.1


def test_the_real_models_have_the_tables_sizes():
    import timm

    assert {name: row.dim for name, row in METRICS_ONLY.items()} == {
        "inception_logits": 1008,
        "dinov2_224": 1024,
        "clip_336": 768,
    }
    with torch.device("meta"):
        for name in ("dinov2_224", "clip_336"):
            row = METRICS_ONLY[name]
            model = timm.create_model(row.model, **row.arguments).eval()
            assert model.forward_features(torch.zeros(1, 3, row.resolution, row.resolution)).shape[-1] == 1024
            assert timm.get_pretrained_cfg(row.model).hf_hub_id == row.weights.repo
            assert 4e-9 * sum(p.numel() for p in model.parameters()) == pytest.approx(row.weights.gigabytes, rel=0.03)
            published = timm.get_pretrained_cfg(row.model)
            assert (published.mean, published.std) == row.normalisation
        assert model.num_classes == 768


# --- what they are for -----------------------------------------------------------------------------------------------


def test_they_judge_and_never_train(loaded):
    with pytest.raises(ValueError, match="dinov2_224 can judge and never train; name it in held_out"):
        PanelBatteryConfig(held_in=("inception", "dinov2_224"))
    with pytest.raises(ValueError, match="has no gradient"):
        loaded("clip_336")[1](torch.rand(1, 3, 28, 28, requires_grad=True))
    assert PanelBatteryConfig(held_out=tuple(METRICS_ONLY)).names[-3:] == tuple(METRICS_ONLY)
    assert not {*METRICS_ONLY} & {*PanelBatteryConfig().names}, "the panel is the paper's"


def test_groups_are_words_for_encoders():
    assert GROUPS["panel"] == tuple(PANEL)
    assert expanded(["literature", "mae", "inception"]) == (*LITERATURE, "mae")


def test_encoders_of_one_file_share_its_folder(folder, loaded):
    entry, encoder = loaded("inception_logits")
    assert entry.located(folder).folder == folder / "inception" and not (folder / "inception_logits").exists()
    assert fingerprint(entry, folder) != fingerprint(write_tiny("inception", folder), folder)
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, 1008)


def test_very_large_images_are_read_a_few_at_a_time(monkeypatch):
    images = torch.rand(9, 3, 8, 8)
    split, read = TensorSplit(images, Unconditional(9)), []
    monkeypatch.setattr(type(split), "read", lambda self, rows: (read.append(len(rows)), images[rows])[1])
    one = embed(split, {"a": torch.nn.Flatten()})
    monkeypatch.setattr("irdm.data.base.AT_ONCE", 2 * 3 * 8 * 8 + 1)
    two = embed(split, {"a": torch.nn.Flatten()})
    assert read == [9, 2, 2, 2, 2, 1] and torch.equal(one.features["a"], two.features["a"])
    monkeypatch.setattr("irdm.data.base.AT_ONCE", 1)
    assert split.at_once(64) == 1
