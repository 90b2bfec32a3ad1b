"""Sources of images: one list from a folder, a zip, tars and an array, in an order of names; what is odd is named."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from irdm.conditions import Unconditional
from irdm.data import pictures_like, printable
from irdm.data.image_source import in_threads
from irdm.data.sources import open_source

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (12, 9, 8, 3)).astype(np.uint8)
NESTED = [f"{('cat', 'dog', 'eel')[i % 3]}/{i:02d}.png" for i in range(12)]
FLAT = [f"{i:02d}.png" for i in range(12)]


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


FILES = [png(picture) for picture in PICTURES]


def write_folder(path, names, order=None):
    for i in order if order is not None else range(len(names)):
        (path / names[i]).parent.mkdir(parents=True, exist_ok=True)
        (path / names[i]).write_bytes(FILES[i])
    return path


def write_zip(path, names, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in zip(names, FILES, strict=True):
            archive.writestr(name, data)
    return path


def write_tar(path, members, mode="w"):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def pixels(source, channels=3):
    return torch.stack(list(source.decoded(range(len(source)), None, channels)))


def fingerprint(path):
    return pictures_like(open_source(path), (3, 8, 8)).fingerprint


def labels(source):
    return source.conditions.labels.tolist()


EXPECTED = torch.from_numpy(PICTURES).permute(0, 3, 1, 2)


@pytest.mark.parametrize("names", [FLAT, NESTED], ids=["flat", "nested"])
def test_folder_zip_and_tar_are_one_source(tmp_path, names):
    folder = open_source(write_folder(tmp_path / "folder", names))
    stored = open_source(write_zip(tmp_path / "a.zip", names))
    packed = open_source(write_zip(tmp_path / "b.zip", names[:], compression=zipfile.ZIP_DEFLATED))
    tar = open_source(write_tar(tmp_path / "c.tar", list(zip(names, FILES, strict=True))[::-1]))
    order = sorted(range(12), key=lambda i: names[i])
    for source in (folder, stored, packed, tar):
        assert list(source.names) == [names[i] for i in order]
        assert torch.equal(pixels(source), EXPECTED[order])
        assert [source.read(row) for row in range(12)] == [FILES[i] for i in order]
        if names is NESTED:
            assert source.conditions.names == ("cat", "dog", "eel") and labels(source) == [i % 3 for i in order]
        else:
            assert isinstance(source.conditions, Unconditional) and len(source.conditions) == 12
    assert len({fingerprint(tmp_path / name) for name in ("folder", "a.zip", "b.zip", "c.tar")}) == 1


def test_the_order_is_of_names_and_the_fingerprint_of_content(tmp_path):
    first = open_source(write_folder(tmp_path / "one", NESTED))
    second = open_source(write_folder(tmp_path / "two", NESTED, RNG.permutation(12)))
    plain = fingerprint(tmp_path / "one")
    assert first.names == second.names and fingerprint(tmp_path / "two") == plain
    os.utime(tmp_path / "two" / NESTED[3], (0, 0))
    assert fingerprint(tmp_path / "two") == plain
    data = bytearray(FILES[3])
    data[-20] ^= 1
    (tmp_path / "two" / NESTED[3]).write_bytes(data)
    assert fingerprint(tmp_path / "two") != plain
    (tmp_path / "two" / NESTED[3]).write_bytes(FILES[3])
    (tmp_path / "two" / "dog" / "00.png").write_bytes(FILES[0])
    assert fingerprint(tmp_path / "two") != plain


def test_the_fingerprint_is_the_same_in_another_process(tmp_path):
    path = write_folder(tmp_path / "one", NESTED)
    code = (
        "from irdm.data import open_source, pictures_like\n"
        f"print(pictures_like(open_source({str(path)!r}), (3, 8, 8)).fingerprint)"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fingerprint(path)


def test_folders_shared_by_all_images_are_no_class(tmp_path):
    write_folder(tmp_path / "one" / "photos" / "all of them", NESTED)
    assert open_source(tmp_path / "one").conditions.names == ("cat", "dog", "eel")
    write_folder(tmp_path / "deep", [f"{name[:3]}/{i % 2}/{name[4:]}" for i, name in enumerate(NESTED)])
    assert open_source(tmp_path / "deep").conditions.names == ("cat", "dog", "eel")


def test_notes_litter_and_links(tmp_path):
    path = write_folder(tmp_path / "one", FLAT)
    plain = fingerprint(path)
    for name in ("README.md", "labels.csv", ".DS_Store", "Thumbs.db", "__MACOSX/x", ".git/y"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("text")
    assert fingerprint(path) == plain
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "here").symlink_to(path)
    assert len(open_source(tmp_path / "linked")) == 12
    (path / "round").symlink_to(path)
    with pytest.raises(ValueError, match="round links to"):
        open_source(path)


SHARDS = [[(f"{i:03d}.{kind}", data) for i in range(s * 4, s * 4 + 4) for kind, data in
           [("png", FILES[i]), ("cls", b"%d\n" % (i % 3)), ("json", b"{}"), ("txt", b"a caption")]]
          for s in range(3)]  # fmt: skip


def test_webdataset_shards(tmp_path):
    for s in (2, 0, 1):
        write_tar(tmp_path / "shards" / f"train-{s:03d}.tar", SHARDS[s])
    source = open_source(tmp_path / "shards")
    assert source.names[5] == "train-001.tar/005.png"
    assert labels(source) == [i % 3 for i in range(12)] and source.conditions.names == ("0", "1", "2")
    assert torch.equal(pixels(source), EXPECTED)
    assert source.read(7) == FILES[7], "read in any order"
    one = open_source(tmp_path / "shards" / "train-001.tar")
    assert len(one) == 4 and labels(one) == [1, 2, 0, 1]


def bad_tar(tmp_path, change):
    members = list(SHARDS[0])
    if change == "cut":
        path = write_tar(tmp_path / "s" / "bad.tar", members)
        path.write_bytes(path.read_bytes()[: 3 * 512])
    elif change == "cut between files":
        path = write_tar(tmp_path / "s" / "bad.tar", members)
        with tarfile.open(path) as archive:
            start = archive.getmember("001.png").offset
        path.write_bytes(path.read_bytes()[:start])
    elif change == "compressed":
        path = write_tar(tmp_path / "s" / "bad.tar", members, "w:gz")
    else:
        members = {
            "no class": [m for m in members if m[0] != "002.cls"],
            "odd class": [(n, b"two") if n == "002.cls" else (n, d) for n, d in members],
            "two images": [*members, ("002.seg.png", FILES[0])],
            "twice": [*members, members[0]],
            "unknown": [*members, ("002.pyd", b"?")],
        }[change]
        path = write_tar(tmp_path / "s" / "bad.tar", members)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cut", "bad.tar cannot be used"),
        ("cut between files", "cut short: 0 bytes of zeros"),
        ("compressed", "compressed"),
        ("no class", "002.png, have no .cls"),
        ("odd class", "two"),
        ("two images", "Sample bad.tar/002 of a tar has several"),
        ("twice", "000.png twice"),
        ("unknown", "002.pyd"),
    ],
)
def test_bad_tars_are_named(tmp_path, change, message):
    path = bad_tar(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        open_source(path.parent)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("names", [("images", "labels"), ("arr_0", "arr_1")])
def test_npz(tmp_path, save, names):
    save(tmp_path / "a.npz", **{names[0]: PICTURES, names[1]: np.arange(12) % 3}, other=np.ones(3))
    source = open_source(tmp_path / "a.npz")
    assert torch.equal(pixels(source), EXPECTED)
    assert labels(source) == [i % 3 for i in range(12)] and source.conditions.names == ("0", "1", "2")
    save(tmp_path / "b.npz", images=PICTURES.transpose(0, 3, 1, 2), labels=np.arange(12) % 3)
    assert fingerprint(tmp_path / "b.npz") == fingerprint(tmp_path / "a.npz")
    save(tmp_path / "c.npz", images=PICTURES / 255, labels=np.arange(12) % 3)
    assert fingerprint(tmp_path / "c.npz") == fingerprint(tmp_path / "a.npz"), "floats are rounded to 8 bits"


def test_npy_grey_and_column_order(tmp_path):
    np.save(tmp_path / "a.npy", PICTURES[..., 0])
    grey = open_source(tmp_path / "a.npy")
    assert grey.channels == 1 and grey.image_shape == (1, 9, 8)
    assert torch.equal(pixels(grey), EXPECTED[:, :1].expand(-1, 3, -1, -1))
    assert torch.equal(pixels(grey, 1), EXPECTED[:, :1])
    np.savez(tmp_path / "f.npz", images=np.asfortranarray(PICTURES))
    assert torch.equal(pixels(open_source(tmp_path / "f.npz")), EXPECTED)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": PICTURES / 254}, "span 0 to 1.00394"),
        ({"images": PICTURES.astype(np.int16)}, "int16"),
        ({"pictures": PICTURES}, "pictures"),
        ({"images": PICTURES[0, 0]}, r"\[n, h, w\]"),
        ({"images": PICTURES, "labels": np.arange(3)}, r"labels are int64 of shape \[3\]"),
        ({"images": PICTURES, "labels": np.arange(12) - 1}, "labels"),
        ({"images": PICTURES, "labels": np.arange(12) * 10**8}, "class number"),
        ({"images": PICTURES, "labels": np.full(12, 2**64 - 1, np.uint64)}, "class number is 18446744073709551615"),
        ({"images": np.array([{}], object)}, "pickled"),
    ],
)
def test_bad_arrays_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "a.npz")


def test_bad_places_are_named(tmp_path):
    with pytest.raises(ValueError, match="There is no"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image among its 0 file"):
        open_source(tmp_path / "empty")
    mixed = write_folder(tmp_path / "mixed", [*NESTED[:-1], "alone.png"])
    with pytest.raises(ValueError, match="alone.png lies beside the folder 'cat'"):
        open_source(mixed)
    (mixed / "alone.png").rename(mixed / "alone.psd")
    with pytest.raises(ValueError, match="unknown kind, such as alone.psd"):
        open_source(mixed)
    both = write_folder(tmp_path / "both", FLAT)
    shutil.copy(write_tar(tmp_path / "x.tar", SHARDS[0]), both)
    with pytest.raises(ValueError, match="both images and .tar"):
        open_source(both)
    with pytest.raises(ValueError, match="Give the folder"):
        open_source(both / "00.png")
    cut = write_zip(tmp_path / "cut.zip", NESTED)
    cut.write_bytes(cut.read_bytes()[:-60])
    with pytest.raises(ValueError, match="cut short"):
        open_source(cut)
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive, pytest.warns(UserWarning):
        archive.writestr("a.png", FILES[0])
        archive.writestr("a.png", FILES[1])
    with pytest.raises(ValueError, match="a.png twice"):
        open_source(tmp_path / "two.zip")


def test_a_flipped_byte_in_a_zip_is_named(tmp_path):
    path = write_zip(tmp_path / "a.zip", NESTED)
    data = bytearray(path.read_bytes())
    data[data.find(FILES[4]) + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{NESTED[4]} cannot be read"):
        pixels(open_source(path))


def test_grey_pictures_are_known_by_their_headers(tmp_path):
    grey = tmp_path / "grey"
    grey.mkdir()
    for i, mode in enumerate(["1", "L", "LA", "I;16"]):
        image = Image.fromarray(PICTURES[i, ..., 0])
        (Image.fromarray(PICTURES[i, ..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)).save(
            grey / f"{i}.png"
        )
    assert open_source(grey).channels == 1
    assert open_source(write_folder(tmp_path / "colour", FLAT)).channels == 3
    (grey / "z.png").write_bytes(FILES[0])
    assert open_source(grey).channels == 3, "one picture of colour is enough"


def test_looking_for_colour_stops_at_the_first(tmp_path, monkeypatch):
    source = open_source(write_zip(tmp_path / "a.zip", NESTED))
    monkeypatch.setattr(source, "names", source.names * 100)
    asked = []
    monkeypatch.setattr(source, "read", lambda row: (asked.append(row), FILES[row % 12])[1])
    assert source.channels == 3 and len(asked) <= 64


def test_names_that_are_no_utf8(tmp_path):
    raw = os.fsdecode(b"caf\xe9")
    path = write_folder(tmp_path / "one", [f"{raw}/{raw}{i}.png" if i % 2 else f"cat/{i}.png" for i in range(12)])
    source = open_source(path)
    assert torch.equal(pixels(source), EXPECTED[torch.tensor([1, 11, 3, 5, 7, 9, 0, 10, 2, 4, 6, 8])])
    pictures = pictures_like(source, (3, 8, 8))
    for text in (*source.conditions.names, pictures.name, source.where(0), pictures.fingerprint):
        text.encode("utf-8")
    assert printable(raw) == "caf\\udce9" and source.conditions.spec.names == ("caf\\udce9", "cat")
    first = path / raw / f"{raw}1.png"
    first.write_bytes(b"")
    with pytest.raises(ValueError, match="udce91.png cannot be used") as caught:
        pixels(source)
    str(caught.value).encode("utf-8")


def test_every_image_that_cannot_be_used_is_named_at_once(tmp_path):
    path = write_folder(tmp_path / "one", NESTED)
    (path / NESTED[2]).write_bytes(FILES[2][:60])
    source = open_source(path)
    with pytest.raises(ValueError, match=f"{NESTED[2]} cannot be used"):
        pixels(source)
    Image.fromarray(PICTURES[0]).save(path / NESTED[7], save_all=True, append_images=[Image.fromarray(PICTURES[1])])
    with pytest.raises(ValueError, match="2 of 12 images cannot be used") as caught:
        pixels(source)
    assert NESTED[2] in str(caught.value) and f"{NESTED[7]} cannot be used: it has 2 frames" in str(caught.value)


def test_threads_keep_the_order_and_stop_at_the_first_error():
    def slow(i):
        time.sleep(0.002 * (i % 3))
        if i == 37:
            raise ValueError("thirty-seven")
        return i

    assert list(in_threads(slow, range(30), block=7, threads=4)) == list(range(30))
    seen = []
    with pytest.raises(ValueError, match="thirty-seven"):
        for i in in_threads(slow, range(1000), block=7, threads=4):
            seen.append(i)
    assert seen == list(range(37))


def test_threads_read_only_two_blocks_ahead():
    asked = []
    numbers = in_threads(asked.append, range(1000), block=8, threads=2)
    next(numbers)
    numbers.close()
    assert len(asked) <= 16
