"""Damaged and hostile files: an image is read as it was packed, or it is said by name what is wrong; never fewer."""

import io
import os
import random
import socket
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from irdm.data import open_source

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (9, 6, 7, 3)).astype(np.uint8)
# a name of 18 letters: an entry of the zip's index is then 64 bytes, one bit from being passed over as a comment
NAMES = [f"{('cats', 'dogs', 'eels')[i % 3]}/number-{i:02d}.png" for i in range(9)]


def encoded(array, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


FILES = [encoded(picture) for picture in PICTURES]


def make(kind, files=FILES):
    buffer = io.BytesIO()
    if kind in ("zip", "deflated.zip"):
        packing = zipfile.ZIP_STORED if kind == "zip" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(buffer, "w", packing) as archive:
            for name, data in zip(NAMES, files, strict=True):
                archive.writestr(name, data)
    elif kind.endswith("tar"):
        form = {"tar": tarfile.PAX_FORMAT, "gnu.tar": tarfile.GNU_FORMAT}[kind]
        with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
            for name, data in zip(NAMES, files, strict=True):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    elif kind == "npy":
        np.save(buffer, PICTURES)
    else:
        (np.savez if kind == "npz" else np.savez_compressed)(buffer, images=PICTURES, labels=np.arange(9) % 3)
    return buffer.getvalue()


KINDS = ("zip", "deflated.zip", "tar", "gnu.tar", "npz", "packed.npz", "npy")


def read(path):
    """All pixels in order, or None when the file was refused in the right way."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = open_source(path)
            return torch.stack(list(source.decoded(range(len(source)), (6, 7))))
    except (ValueError, OSError) as error:
        assert path.name in str(error), f"{error} does not name {path.name}"
        return None


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_is_never_a_shorter_data_set(tmp_path, kind):
    whole, path = make(kind), tmp_path / f"some.{kind}"
    path.write_bytes(whole)
    assert len(read(path)) == 9
    marks = [at + shift for at in range(0, len(whole), 512) for shift in (-1, 0, 1, 100)]
    cuts = {*marks, *random.Random(0).sample(range(len(whole)), 200)}
    for cut in cuts:
        if 0 <= cut < len(whole):
            path.write_bytes(whole[:cut])
            found = read(path)
            # zeros behind a tar's end mark are padding, and may go
            assert found is None or (kind.endswith("tar") and len(found) == 9 and not whole[cut:].strip(b"\0"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_changes_no_pixel_and_loses_no_image(tmp_path, kind):
    whole, path = make(kind), tmp_path / f"some.{kind}"
    path.write_bytes(whole)
    expected, refused = read(path), 0
    dice = random.Random(1)
    index = range(whole.find(b"PK\x01\x02"), len(whole)) if "zip" in kind or "npz" in kind else range(0, 128)
    spots = [*dice.sample(range(len(whole)), 200), *dice.sample(index, min(len(index), 200))]
    for at in spots:
        changed = bytearray(whole)
        changed[at] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
        found = read(path)
        refused += found is None
        if kind == "npy":  # has no checksum: pixels may change, but not their number
            assert found is None or found.shape == expected.shape
        elif found is not None:
            assert torch.equal(found, expected) or renamed(path, expected, found)
    assert refused > len(spots) // 20


def renamed(path, expected, found):
    """Whether the same images came in another order: a name in a tar's long header has no checksum of its content."""
    rows = lambda images: sorted(image.numpy().tobytes() for image in images)  # noqa: E731
    return path.name.endswith("tar") and rows(found) == rows(expected)


@pytest.mark.parametrize("damage", ["zeroed", "flipped", "cut"])
@pytest.mark.parametrize("kind", ["tar", "gnu.tar"])
def test_a_damaged_tar_header_is_not_the_end(tmp_path, kind, damage):
    whole, path = make(kind), tmp_path / "some.tar"
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        headers = [member.offset for member in archive]
    dice = random.Random(3)
    # the two bytes that end a checksum's digits, and its leading zero, may be written in several ways that say the same
    said = [at for at in range(500) if at not in (148, 154, 155)]
    for start in headers:
        for _ in range(8):
            changed = bytearray(whole)
            if damage == "zeroed":
                changed[start : start + 512] = bytes(512)
            elif damage == "flipped":
                changed[start + dice.choice(said)] ^= 1 << dice.randrange(8)
            else:
                del changed[start + dice.randrange(1, 512) :]
            path.write_bytes(changed)
            with pytest.raises(ValueError, match="some.tar"):
                open_source(path)


def test_a_tar_ends_in_two_blocks_of_zeros_and_nothing_else(tmp_path):
    path = tmp_path / "some.tar"
    whole = make("tar").rstrip(b"\0")
    whole += bytes(-len(whole) % 512)
    for ending in (bytes(1024), bytes(9999)):
        path.write_bytes(whole + ending)
        assert len(read(path)) == 9
    for ending in (b"", bytes(512), bytes(2**20 + 1), bytes(1024) + b"more", bytes(512) + b"x" * 512 + bytes(1024)):
        path.write_bytes(whole + ending)
        assert read(path) is None
    path.write_bytes(whole + bytes(1024) + whole + bytes(1024))
    with pytest.raises(ValueError, match="header at byte .* is damaged"):
        open_source(path)


def test_a_tar_with_a_negative_size_is_refused(tmp_path):
    info = tarfile.TarInfo("cats/0.png")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 11 + b"\x00"  # -256 in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "some.tar").write_bytes(bytes(1024).join([make("tar").rstrip(b"\0"), bytes(header)]))
    with pytest.raises(ValueError, match="some.tar"):
        open_source(tmp_path / "some.tar")
    (tmp_path / "some.tar").write_bytes(bytes(header) + bytes(10240))
    with pytest.raises(ValueError, match="some.tar"):
        open_source(tmp_path / "some.tar")


def test_a_zip_whose_index_lost_an_entry_is_refused(tmp_path):
    path, whole = tmp_path / "some.zip", bytearray(make("zip"))
    entry = whole.find(b"PK\x01\x02")
    whole[entry + 32] ^= 64  # the length of its comment: the next entry of 64 bytes is taken for it
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == 8, "zipfile says nothing"
    with pytest.raises(ValueError, match="some.zip cannot be used: its index lists 8 files, .* tells of 9"):
        open_source(path)


def test_a_zip_name_that_became_hidden_is_refused(tmp_path):
    path = tmp_path / "some.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a.png", "b.png", "n.png"):
            archive.writestr(name, FILES[0])
    whole = bytearray(path.read_bytes())
    whole[whole.rfind(b"n.png")] ^= 0x40  # "n" becomes "."
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="some.zip cannot be used: File name in directory"):
        open_source(path)


@pytest.mark.parametrize("told", [9, 10])
def test_zip64_is_counted_in_its_own_way(tmp_path, told):
    """As archives of more than 65,534 files end: APPNOTE 4.3.14 to 4.3.16."""
    path, whole = tmp_path / "some.zip", make("zip")
    body, end = whole[:-22], bytearray(whole[-22:])
    size, start = struct.unpack("<II", end[12:20])
    end[8:12] = b"\xff" * 4
    large = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, told, told, size, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(body), 1)
    path.write_bytes(body + large + locator + end)
    assert (read(path) is not None) == (told == 9)


def lying_zip(path, data, told, summed=0):
    """A zip with one deflated image whose index tells another size, and the checksum of its first bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", data)
    whole = bytearray(path.read_bytes())
    entry = whole.find(b"PK\x01\x02")
    whole[entry + 24 : entry + 28] = struct.pack("<I", told)
    whole[entry + 16 : entry + 20] = struct.pack("<I", zlib.crc32(data[: summed or told]))
    path.write_bytes(whole)
    return path


@pytest.fixture
def limit(monkeypatch):
    """A small limit in place of 256 MiB, to be quick."""
    for module in ("image_source", "sources"):
        monkeypatch.setattr(f"irdm.data.{module}.LARGEST", 2**20)
    return 2**20


def test_zip_members_that_swell_are_refused_without_being_unpacked(tmp_path, limit):
    zeros, path = bytes(2**25), tmp_path / "some.zip"
    lying_zip(path, zeros, len(zeros))
    with pytest.raises(ValueError, match=f"some.zip/bomb.png is {len(zeros)} bytes long"):
        open_source(path)
    for summed, message in ((1000, "Bad CRC"), (1001, "is not the 1000 bytes long that the archive tells")):
        source = open_source(lying_zip(path, zeros, 1000, summed))
        tracemalloc.start()
        with pytest.raises(ValueError, match=f"bomb.png .*{message}"):
            source.read(0)
        assert tracemalloc.get_traced_memory()[1] < 2**22
        tracemalloc.stop()
    with pytest.raises(ValueError, match="bomb.png .* is not the 999 bytes long"):
        open_source(lying_zip(path, bytes(300), 999)).read(0)


def test_large_files_are_refused_wherever_they_lie(tmp_path, limit):
    folder = tmp_path / "folder"
    folder.mkdir()
    with open(folder / "large.png", "wb") as file:
        file.truncate(limit + 1)
    with pytest.raises(ValueError, match="folder/large.png is .* bytes long, more than"):
        open_source(folder).read(0)
    with tarfile.open(tmp_path / "some.tar", "w") as archive:
        archive.add(folder / "large.png", "large.png")
    with pytest.raises(ValueError, match="some.tar/large.png is .* bytes long, more than"):
        open_source(tmp_path / "some.tar")


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 99])
def test_rare_packings_are_refused_by_name(tmp_path, packing):
    path = tmp_path / "some.zip"
    with zipfile.ZipFile(path, "w", packing if packing != 99 else zipfile.ZIP_STORED) as archive:
        archive.writestr("a.png", FILES[0])
    if packing == 99:
        whole = bytearray(path.read_bytes())
        entry = whole.find(b"PK\x01\x02")
        whole[entry + 10 : entry + 12] = struct.pack("<H", 99)
        path.write_bytes(whole)
    with pytest.raises(ValueError, match="some.zip cannot be used: a.png is neither stored nor deflated"):
        open_source(path)


def test_what_is_no_plain_file_is_refused_by_name_and_not_opened(tmp_path):
    for name, put, what in (
        ("x.png", lambda path: os.symlink("/dev/zero", path), "a device"),
        ("y.png", os.mkfifo, "a pipe"),
        ("z.png", lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "a socket"),
        ("w.png", lambda path: os.symlink("nowhere", path), "a link that leads nowhere"),
    ):
        folder = tmp_path / name[0]
        folder.mkdir()
        (folder / "good.png").write_bytes(FILES[0])
        put(folder / name)
        with pytest.raises(ValueError, match=f"{name} is {what}"):
            open_source(folder)
    for path in (tmp_path / "y" / "y.png", tmp_path / "x" / "x.png"):
        with pytest.raises(ValueError, match="There is no"):
            open_source(path)


def test_a_stored_array_is_compared_with_its_checksum(tmp_path):
    path, whole = tmp_path / "some.npz", bytearray(make("npz"))
    whole[whole.find(PICTURES.tobytes()) + 500] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="some.npz cannot be read .*Bad CRC"):
        open_source(path)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (4, 6, 7, 3)}",  # fewer images than there are
        "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 6, 7, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-9, 6, 7, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': ()}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (9, 6, 7, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (9L, 6, 7, 3",  # tokenize.TokenError
        "(" * 500,
        "\0\0\0",
        "",
    ],
)
def test_garbage_headers_of_arrays_are_refused(tmp_path, header):
    text = header.encode("latin-1") + b"\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + PICTURES.tobytes()
    (tmp_path / "some.npy").write_bytes(array)
    with zipfile.ZipFile(tmp_path / "some.npz", "w") as archive:
        archive.writestr("images.npy", array)
    for name in ("some.npy", "some.npz"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as a NumPy file"):
            open_source(tmp_path / name)


def test_an_array_that_is_cut_while_it_is_open_is_named(tmp_path):
    path = tmp_path / "some.npy"
    np.save(path, PICTURES)
    source = open_source(path)
    os.truncate(path, 500)
    with pytest.raises(ValueError, match="some.npy was cut short"):
        source.read(8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF"])
def test_damaged_images_are_read_or_named(tmp_path, kind):
    picture = RNG.integers(0, 256, (24, 20, 3)).astype(np.uint8)
    whole, path = encoded(picture, kind), tmp_path / f"some.{kind.lower()}"
    dice = random.Random(2)
    path.write_bytes(whole)
    source = open_source(tmp_path)
    expected = next(source.decoded([0]))
    for _ in range(300):
        changed = bytearray(whole)
        if dice.random() < 0.5:
            del changed[dice.randrange(len(whole)) :]
        else:
            for _ in range(dice.randrange(1, 4)):
                changed[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                (found,) = source.decoded([0])
        except ValueError as error:
            assert path.name in str(error)
        else:
            assert found.dtype == torch.uint8 and found.shape[0] == 3
            assert kind != "PNG" or torch.equal(found, expected), "a PNG has checksums"
