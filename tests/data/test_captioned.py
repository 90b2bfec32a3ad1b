"""Images with captions: read from files of every kind, matched, shared out, and embedded."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from irdm.conditions import Prompts
from irdm.data import CaptionedConfig
from irdm.data.captions import overlap, read_captions
from irdm.data.checks import check_real
from irdm.fields import UsageError, validate


def png(number):
    """A picture that no other number has."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(folder, count, first=0, below=""):
    (folder / below).mkdir(parents=True, exist_ok=True)
    names = [f"{below}{i:03d}.png" for i in range(first, first + count)]
    for i, name in enumerate(names, first):
        (folder / name).write_bytes(png(i))
    return names


def config(*paths, **fields):
    return CaptionedConfig(path=paths, **{"embedder": "ngrams", **fields})


def sidecars(folder, names):
    for name in names:
        (folder / name).with_suffix(".txt").write_text(f"picture {name} ☂\n")


def as_jsonl(folder, names):
    rows = [json.dumps({"file_name": name, "text": f"picture {name} ☂"}) for name in reversed(names)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))


def as_csv(folder, names):
    (folder / "captions.csv").write_text("image,caption\n" + "\n".join(f'{n},"picture {n} ☂"' for n in names))


def as_coco(folder, names):
    notes = [{"image_id": i, "caption": f"{said}picture {n} ☂"} for said in ("", "again ") for i, n in enumerate(names)]
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": notes}))


@pytest.mark.parametrize("write", [sidecars, as_jsonl, as_csv, as_coco])
def test_every_image_has_its_own_caption_whatever_file_it_stands_in(tmp_path, write):
    names = [*pictures(tmp_path, 3), *pictures(tmp_path, 5, 3, "sub/")]
    write(tmp_path, names)
    dataset = config(tmp_path, val_fraction=0.5).build()
    assert len(dataset.train) == len(dataset.val) == 4 and dataset.image_shape == (3, 8, 8)
    for split in (dataset.train, dataset.val):
        for row, caption in enumerate(split.conditions.captions()):
            number = int(caption.split()[1][-7:-4])
            expected = torch.from_numpy(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8))
            assert torch.equal(split.read(torch.tensor([row]))[0], expected.permute(2, 0, 1) / 255)
    tau = prompts(dataset.train).tau
    assert tau is not None and tau.shape == (4, 256) and prompts(dataset.train).strata is None
    assert any("8 further captions" in note for note in dataset.notes) == (write is as_coco)
    assert dataset.fingerprint == config(tmp_path, val_fraction=0.5).build().fingerprint


def test_a_webdataset_tar_has_a_text_or_a_json_beside_each_image(tmp_path):
    def pack(path, files):
        with tarfile.open(path, "w") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    files = {f"{i:03d}.png": png(i) for i in range(6)} | {f"{i:03d}.txt": b"text %d" % i for i in range(3)}
    pack(tmp_path / "a.tar", files | {f"{i:03d}.json": b'{"caption": "object %d"}' % i for i in range(3, 6)})
    dataset = config(tmp_path / "a.tar").build()
    said = {*dataset.train.conditions.captions(), *dataset.val.conditions.captions()}
    assert said == {"text 0", "text 1", "text 2", "object 3", "object 4", "object 5"}
    pack(tmp_path / "b.tar", files)
    with pytest.raises(ValueError, match=r"b.tar/003.png has no caption: neither 003.txt nor 003.json"):
        config(tmp_path / "b.tar").build()


def prompts(split) -> Prompts:
    """The conditions of a split."""
    assert isinstance(split.conditions, Prompts)
    return split.conditions


def shares(split):
    """Rows of each source."""
    strata = prompts(split).strata
    assert strata is not None
    return torch.bincount(strata)


@pytest.fixture
def two(tmp_path):
    for name, count, first in (("many", 90, 0), ("few", 30, 500)):
        sidecars(tmp_path / name, pictures(tmp_path / name, count, first))
    return tmp_path / "many", tmp_path / "few"


def test_sources_stand_in_the_stated_shares_on_both_sides(two):
    dataset = config(*two, shares=(0.5, 0.5), val_fraction=1 / 3).build()
    for split, size in ((dataset.train, 20), (dataset.val, 10)):
        assert shares(split).tolist() == [size, size]
        assert split.conditions.spec == dataset.train.conditions.spec
    assert prompts(dataset.train).spec.sources == ("many", "few")
    assert len(prompts(dataset.train).spec.examples) == 16
    assert any("60 of 90" in note and "left out" in note for note in dataset.notes)
    assert any("left out" in note for note in check_real(dataset, fewest=10)), "train and reference build say so"
    whole = config(*two).build()
    assert (shares(whole.train) / len(whole.train)).tolist() == [0.75, 0.25]
    apart = config(*two, val=two[::-1], shares=(0.75, 0.25)).build()
    assert shares(apart.val).tolist() == [30, 10], "two places of val have the shares too"
    small = config(*two, limit=40).build()
    assert len(small.train) + len(small.val) == 40


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"shares": (0.5, 0.6)}, "shares are 0.5, 0.6; expected shares above 0 that sum to 1"),
        ({"shares": (1.0,)}, "shares has 1 entries for 2 places"),
        ({"val": ("x",)}, "val has 1 entries for 2 places"),
        ({"val_captions": ("x", "y")}, "val_captions is given without val"),
    ],
)
def test_fields_that_do_not_fit(fields, says):
    with pytest.raises(UsageError, match=says):
        validate(CaptionedConfig, {"path": ["a", "b"], **fields}, "--data.")


def test_shares_that_cannot_be_met(two):
    with pytest.raises(ValueError, match=r"The shares 0.999, 0.001 cannot be met: only 90 of the 120 images"):
        config(*two, shares=(0.999, 0.001)).build()


def test_captions_that_do_not_match_the_images(tmp_path):
    names = pictures(tmp_path, 4)
    with pytest.raises(ValueError, match=r"000.png has no caption: there is no 000.txt beside it, and none of"):
        config(tmp_path).build()
    as_jsonl(tmp_path, [*names, "gone.png"])
    with pytest.raises(ValueError, match=r"1 captions of .*metadata.jsonl are of images that are not in .*: gone.png"):
        config(tmp_path).build()
    as_jsonl(tmp_path, names[1:])
    with pytest.raises(ValueError, match=r"1 of 4 images of .* have no caption in .*: 000.png"):
        config(tmp_path).build()
    as_csv(tmp_path, names)
    with pytest.raises(ValueError, match=r"holds metadata.jsonl and captions.csv; say which"):
        config(tmp_path).build()
    assert len(config(tmp_path, captions=(tmp_path / "captions.csv",), val_fraction=0.5).build().train) == 2
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(ValueError, match="is half rendered: it has no captions.jsonl yet. Repeat the `irdm render`"):
        config(tmp_path).build()
    with pytest.raises(ValueError, match="There is no text encoder 'none'"):
        (tmp_path / "plan.json").unlink()
        config(tmp_path, captions=(tmp_path / "captions.csv",), embedder="none").build()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.jsonl", '{"file_name": "x"}', "line 1 has no text in caption, text, prompt; found file_name"),
        ("a.jsonl", '{"text": "x"}\n{', "line 2 is no JSON"),
        ("a.csv", "image,words\nx,y", "row 1 has no text"),
        ("a.json", '{"images": []}', "is no COCO file of captions"),
        ("a.txt", "a\n\nb", "the caption of row 2 is empty"),
        ("a.txt", "", "holds no caption"),
        ("a.md", "x", "is no file of captions; known are .txt, .jsonl"),
    ],
)
def test_files_that_are_no_captions(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=says):
        read_captions(tmp_path / name)


def test_prompts_of_an_evaluation_in_the_pool_are_counted(two, tmp_path):
    pool = ["A cat, sitting.", "a dog", "a dog", "a bird"]
    assert overlap(pool, ["a cat sitting", "A DOG!", "a fish"]) == {"prompts": 3, "found": 2, "share": 0.75}
    (tmp_path / "judge.txt").write_text("picture 500.png\na fish\n")
    dataset = config(*two, evaluation_prompts=(tmp_path / "judge.txt",)).build()
    (found,) = dataset.overlap.values()
    assert found == {"prompts": 2, "found": 1, "share": 1 / 120}
    assert any("1 of 2 prompts of" in note and "0.8% of its rows" in note for note in dataset.notes)
