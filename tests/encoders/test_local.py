"""The local battery: frozen, differentiable, seeded, cached, and quick to name what is broken."""

import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from irdm.conditions import Classes, Unconditional
from irdm.data import DigitsConfig, SpiralConfig, WorldConfig
from irdm.data.base import Dataset, SplitConfig, TensorSplit, split_dataset
from irdm.distances import NystromMMD
from irdm.encoders import LocalBatteryConfig
from irdm.files import hash_of, hash_tensors, read_tensors, write_tensors

QUICK = LocalBatteryConfig(steps=2, width=4)
SMALL = QUICK.model_copy(update={"held_in": ("layout", "pixels"), "held_out": ("pca",)})


@pytest.fixture(scope="module")
def digits():
    return DigitsConfig().build()


@pytest.fixture(scope="module")
def battery(digits):
    return QUICK.fit(digits)


def test_default_battery_has_the_parts_the_recipe_needs():
    config = LocalBatteryConfig()
    assert len(config.held_in) >= 5 and len(config.held_out) >= 3
    assert not set(config.held_in) & set(config.held_out)


def test_encoders_are_frozen_and_differentiable(battery, digits):
    images = digits.val.images[:5].clone().requires_grad_()
    battery.train()
    for name, encoder in battery.encoders.items():
        features = encoder(images)
        assert features.shape == (5, encoder.dim) and features.dtype == torch.float32 and encoder.name == name
        (gradient,) = torch.autograd.grad(features.square().sum(), images)
        assert gradient.isfinite().all() and gradient.any()
        assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())


def test_rows_do_not_see_each_other(battery, digits):
    images = digits.val.images[:6]
    for encoder in battery.encoders.values():
        assert torch.allclose(encoder(images)[2:4], encoder(images[2:4]), atol=1e-5)


def test_fit_is_seeded_and_leaves_the_global_seed_alone(battery, digits):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = QUICK.fit(digits)
    assert torch.equal(torch.rand(3), expected)
    for name, value in battery.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_an_encoder_does_not_depend_on_its_company(battery, digits):
    alone = QUICK.model_copy(update={"held_in": ("layout",), "held_out": ("pca",)}).fit(digits)
    images = digits.val.images[:4]
    assert torch.equal(alone["layout"](images), battery["layout"](images))


@pytest.mark.parametrize("name", ["content", "layout"])
def test_training_teaches_the_class(digits, name):
    battery = LocalBatteryConfig(steps=60, held_in=(name,), held_out=()).fit(digits)
    train, val = (battery[name](part.images) for part in (digits.train, digits.val))
    nearest = digits.train.conditions.labels[torch.cdist(val, train).argmin(1)]
    assert (nearest == digits.val.conditions.labels).float().mean() > 0.9


@pytest.mark.parametrize("shape", [(3, 20, 20), (1, 9, 14), (3, 4, 4), (1, 5, 4), (3, 72, 68)])
def test_any_image_size(shape):
    images = torch.rand(60, *shape, generator=torch.Generator().manual_seed(0))
    dataset = split_dataset("noise", images, Classes(torch.arange(60) % 2, ("a", "b")), SplitConfig())
    battery = QUICK.model_copy(update={"steps": 1}).fit(dataset)
    again = QUICK.restore(shape, battery.state_dict())
    for name, encoder in battery.encoders.items():
        assert encoder(images[:2]).shape == (2, encoder.dim)
        assert torch.equal(again[name](images[:2]), encoder(images[:2])), name


def test_whitened_numbers_have_eight_images_each(digits):
    for images, classes in ((80, 10), (1198, 10)):
        battery = QUICK.model_copy(update={"images": images}).fit(digits)
        dims = {name: encoder.dim for name, encoder in battery.encoders.items()}
        assert dims.pop("pixels") == 64, "not whitened"
        assert dims["content"] == dims["layout"] == classes - 1
        assert max(dims.values()) <= images / 8 and battery["pca"].dim == min(64, images // 8)


def test_cache_is_read_when_nothing_changed(battery, digits, tmp_path):
    lines = []
    SMALL.fit(digits, cache_dir=tmp_path, progress=lines.append)
    assert len(lines) == 3 and len(list(tmp_path.iterdir())) == 1
    cached = SMALL.fit(digits, cache_dir=tmp_path, progress=lines.append)
    assert len(lines) == 4 and lines[-1].startswith("read 3 encoders")
    images = digits.val.images[:4]
    for name, encoder in cached.encoders.items():
        assert torch.equal(encoder(images), battery[name](images)), name
    SMALL.model_copy(update={"seed": 1}).fit(digits, cache_dir=tmp_path)
    SMALL.fit(DigitsConfig(split_seed=1).build(), cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damaged_cache_is_named_and_refitted(battery, digits, tmp_path, damage):
    SMALL.fit(digits, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes({"flip": content, "cut": content[:5000], "empty": b""}[damage])
    lines = []
    again = SMALL.fit(digits, cache_dir=tmp_path, progress=lines.append)
    assert str(path) in lines[0] and "damaged" in lines[0]
    assert torch.equal(again["layout"](digits.val.images[:2]), battery["layout"](digits.val.images[:2]))
    SMALL.fit(digits, cache_dir=tmp_path, progress=lines.append)
    assert lines[-1].startswith("read 3 encoders")


def keys_of(dataset, config):
    """The whole key of a cache entry, which its name begins with."""
    from irdm.encoders.local import CODE_VERSION

    return hash_of([dataset.train.fingerprint, config.identity(), CODE_VERSION])


def hostile(state, key):
    """Well-formed files that are not the battery's: {what: (tensors, notes)}."""
    right = {"sha256": hash_tensors(state, key)}
    renamed = {name.replace("layout", "layuot"): value for name, value in state.items()}
    half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in state.items()}
    fewer = dict(list(state.items())[1:])
    longer = state | {"encoders.pca.network.mean": torch.zeros(3)}
    flat = state | {"encoders.pca.network.axes": torch.zeros(3)}
    return {
        "other keys": (renamed, {"sha256": hash_tensors(renamed, key)}),
        "bfloat16": (half, {"sha256": hash_tensors(half, key)}),
        "a tensor less": (fewer, {"sha256": hash_tensors(fewer, key)}),
        "another shape": (longer, {"sha256": hash_tensors(longer, key)}),
        "flat axes": (flat, {"sha256": hash_tensors(flat, key)}),
        "a float checksum": (state | {"sha256": torch.rand(32)}, {}),
        "no checksum": (state, {}),
        "a checksum of another key": (state, {"sha256": hash_tensors(state, "other")}),
        "other values": ({name: value + 1 for name, value in state.items()}, right),
    }


@pytest.mark.parametrize("what", list(hostile({"layout": torch.ones(1)}, "")))
def test_a_well_formed_file_of_something_else_is_noticed(digits, tmp_path, what):
    lines = []
    fitted = SMALL.fit(digits, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    state, _ = read_tensors(path, "")
    state = {name: value.clone() for name, value in state.items()}
    write_tensors(path, *hostile(state, keys_of(digits, SMALL))[what])
    again = SMALL.fit(digits, cache_dir=tmp_path, progress=lines.append)
    assert f"the cached battery {path} is damaged" in lines[0] and "fitting it again" in lines[0]
    for name, value in fitted.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    SMALL.fit(digits, cache_dir=tmp_path, progress=lines.append)
    assert lines[-1].startswith("read 3 encoders")


def test_how_many_threads_fit_does_not_matter(digits):
    """Encoders are fitted side by side, each by one thread with random numbers of its own."""
    config = LocalBatteryConfig(steps=5, width=4, held_in=("content", "mixture", "pca"), held_out=("damage", "layout"))
    threads, states = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            torch.manual_seed(count)
            before = torch.get_rng_state()
            states.append(config.fit(digits).state_dict())
            assert torch.equal(torch.get_rng_state(), before), "the global seed is left alone"
    finally:
        torch.set_num_threads(threads)
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_an_interrupted_fit_ends_at_once():
    """Ctrl-C reaches the threads that fit: they do not go on to their ends."""
    script = """
        from irdm.data import DigitsConfig
        from irdm.encoders import LocalBatteryConfig
        config = LocalBatteryConfig(steps=10**6, width=4, held_in=("content", "layout"), held_out=("damage",))
        config.fit(DigitsConfig().build(), progress=lambda text: print(text, flush=True))
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=-1, stderr=-1, text=True) as process:
        try:
            assert process.stdout.readline().startswith("fitting the encoder")
            process.send_signal(signal.SIGINT)
            assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]
        finally:
            process.kill()


def test_two_processes_that_fit_at_once_do_not_disturb_each_other(digits, tmp_path):
    script = """
        import sys
        from pathlib import Path
        import torch
        from irdm.data import DigitsConfig
        from irdm.encoders import LocalBatteryConfig
        torch.set_num_threads(1)
        config = LocalBatteryConfig(steps=2, width=4, held_in=("layout", "pixels"), held_out=("pca",))
        digits = DigitsConfig().build()
        for _ in range(50):
            for file in Path(sys.argv[1]).glob("*.safetensors"):
                file.unlink(missing_ok=True)
            battery = config.fit(digits, cache_dir=Path(sys.argv[1]), progress=print)
        print(float(battery["layout"](torch.full((1, 1, 8, 8), 0.3)).sum()))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "damaged" not in "".join(outputs)
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    assert [path.suffix for path in tmp_path.iterdir()] in ([], [".safetensors"]), "no half-written file"


def test_what_a_killed_process_left_long_ago_is_cleared(digits, tmp_path):
    for name, age in (("old", 2 * 86_400), ("new", 0)):
        left = tmp_path / f".{name}.safetensors.17.partial"
        left.write_bytes(b"half")
        os.utime(left, (left.stat().st_mtime - age,) * 2)
    SMALL.fit(digits, cache_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == [
        ".new.safetensors.17.partial"
    ]


def test_a_cache_that_cannot_be_written_is_named(digits, tmp_path):
    (tmp_path / "afile").write_text("")
    with pytest.raises(OSError, match=rf"{tmp_path}/afile/local-battery-.* could not be written"):
        SMALL.fit(digits, cache_dir=tmp_path / "afile")


def test_only_the_train_images_are_read(digits, battery):
    class Untouched(TensorSplit):
        def read(self, rows):
            raise AssertionError("val is nobody's to fit")

        fingerprint = property(lambda self: self.read(None))

    val = Untouched(digits.val.images, digits.val.conditions)
    again = QUICK.fit(Dataset("digits", digits.train, val), cache_dir=None)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in battery.state_dict().items())


def test_of_many_images_some_are_fitted_the_classes_in_proportion(digits):
    class Counted(TensorSplit):
        seen = None

        def read(self, rows):
            Counted.seen = self.conditions.labels[rows]
            return super().read(rows)

    train = Counted(digits.train.images, digits.train.conditions)
    lines = []
    config = SMALL.model_copy(update={"images": 200})
    config.fit(Dataset("many", train, digits.val), progress=lines.append)
    assert "on 200 images" in lines[0]
    expected = 200 * digits.train.conditions.labels.bincount() / len(train)
    assert (Counted.seen.bincount() - expected).abs().max() <= 1 and (Counted.seen.diff() != 0).float().mean() > 0.5


FEW = [Classes(torch.arange(160) % count, tuple("abcdefg"[: max(2, count)])) for count in (1, 2, 7)]


@pytest.mark.parametrize("conditions", [Unconditional(160), *FEW])
def test_images_of_few_classes_are_contrasted(conditions, tmp_path):
    images = torch.rand(160, 1, 8, 8)
    dataset = Dataset("one", TensorSplit(images, conditions), TensorSplit(images, conditions))
    for _ in range(2):  # fitted, then read from the cache
        battery = QUICK.fit(dataset, cache_dir=tmp_path)
        assert battery["content"].dim == battery["layout"].dim == 16
    again = QUICK.restore((1, 8, 8), battery.state_dict())
    assert torch.equal(again["content"](images), battery["content"](images))


def test_restoring_what_is_not_this_battery_is_refused(battery):
    with pytest.raises(ValueError, match=r"another network:\n  encoders.*expected"):
        QUICK.restore((1, 9, 9), battery.state_dict())
    with pytest.raises(ValueError, match="missing"):
        QUICK.restore((1, 8, 8), {})


def test_points_are_no_pictures():
    with pytest.raises(ValueError, match=r"images of 1 x 1; local encoders need .* 4 x 4 .*--battery.kind identity"):
        QUICK.fit(SpiralConfig().build())


def test_a_long_fit_says_how_far_it_is(digits, monkeypatch):
    monkeypatch.setattr("irdm.progress.EVERY", 0.0)
    lines = []
    SMALL.fit(digits, progress=lines.append)
    assert any("fitting the encoder 'layout': 1 of 2 steps, " in line and "left" in line for line in lines)


def test_lessons_are_counted_as_they_are_given(monkeypatch):
    monkeypatch.setattr("irdm.progress.EVERY", 0.0)
    captioned, lines = WorldConfig(rows=200).build(), []
    names = ("pixels", "content", "mixture", "caption")
    config = LocalBatteryConfig(held_in=names, held_out=("damage",), steps=2, width=4)
    battery = config.fit(captioned, progress=lines.append)
    given = dict(re.findall(r"the encoder '(\w+)': \d+ of (\d+) steps", "\n".join(lines)))
    counted = config.lessons(battery, captioned.train.image_shape, captioned.train.conditions.spec)
    assert counted == {name: 128 * int(given.get(name, 0)) for name in (*names, "damage")}
    assert counted["mixture"] == 2 * counted["damage"] > counted["pixels"] == 0


@pytest.mark.parametrize("seed", [2**62, 2**63 - 1])
def test_large_seeds_are_seeds(digits, seed):
    SMALL.model_copy(update={"seed": seed}).fit(digits)
    with pytest.raises(ValueError, match="less than 9223372036854775808"):
        LocalBatteryConfig(seed=2**63)


def test_unknown_encoder_is_refused():
    with pytest.raises(ValueError, match="no local encoder \\['sift'\\]"):
        LocalBatteryConfig(held_in=("sift",))


@pytest.fixture(scope="module")
def told():
    """(the encoder of captions, its world): fitted for a moment."""
    captioned = WorldConfig(rows=1800).build()
    config = LocalBatteryConfig(held_in=("caption",), held_out=(), steps=150, width=8)
    return config.fit(captioned).encoders["caption"], captioned


def test_the_encoder_of_captions_tells_what_they_say(told):
    encode, captioned = told
    seen, wanted = (split.conditions.tau[0 : len(split)] for split in (captioned.train, captioned.val))
    features = encode(captioned.val.read(torch.arange(len(captioned.val))))
    assert features.shape == wanted.shape and encode.dim == wanted.shape[1]
    assert (features - wanted).square().sum() < 0.8 * (
        wanted - seen.mean(0)
    ).square().sum()  # 1 is no better than the mean


def test_captions_of_other_images_are_seen_by_the_joint_distance(told):
    encode, captioned = told
    sides = []
    for split in (captioned.train, captioned.val):
        sides.append((encode(split.read(torch.arange(len(split)))), split.conditions.tau[0 : len(split)]))
    (real, asked), (fresh, wanted) = sides
    distance = NystromMMD(landmarks=256, condition_bandwidth=1.0).fit(real, asked)
    right, wrong = (float(distance(fresh, tau)) for tau in (wanted, wanted.roll(1, 0)))
    assert wrong > 5 * right  # ten times, and whitened twice


def test_the_encoder_of_captions_needs_some(digits):
    unlabelled = split_dataset("plain", digits.train.images[:160], Unconditional(160), SplitConfig())
    with pytest.raises(ValueError, match="neither captions nor classes"):
        LocalBatteryConfig(held_in=("caption",), held_out=()).fit(unlabelled)
