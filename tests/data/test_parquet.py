"""Parquet as a source: the images, classes, names and captions of a table, and what is odd named."""

import json
import pickle

import numpy as np
import pytest
from tiny_store import folder, pictures, write_parquet  # noqa: F401 (a fixture)

from irdm.data.captions import captions_of
from irdm.data.sources import open_source

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402


def test_a_table_has_the_images_of_the_folder(folder, tmp_path):  # noqa: F811
    source, plain = open_source(write_parquet(folder, tmp_path / "set.parquet")), open_source(folder)
    assert [source.read(row) for row in range(len(source))] == [plain.read(row) for row in range(len(plain))]
    assert source.conditions.spec.names == tuple("0123456") and source.names[3] == "set.parquet[3]"
    assert (pictures(tmp_path / "set.parquet").images == pictures(folder).images).all()
    order = np.random.default_rng(0).permutation(len(source)).tolist()
    again = pickle.loads(pickle.dumps(source))
    assert [again.read(row) for row in order] == [plain.read(row) for row in order], "in any order, in any process"


def test_few_groups_are_kept(folder, tmp_path, monkeypatch):  # noqa: F811
    source = open_source(write_parquet(folder, tmp_path / "set.parquet"))
    monkeypatch.setattr("irdm.data.parquet.KEPT", 8000)
    for row in range(0, len(source), 3):
        source.read(row)
    assert 1 <= len(source._kept) < 8 and len(source._groups) == 8


def test_several_files_names_of_classes_and_captions(tmp_path, folder):  # noqa: F811
    images = [file.read_bytes() for file in sorted(folder.rglob("*.png"))]
    names = {"info": {"features": {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}}}
    for part in (1, 0):
        rows = slice(10 * part, 10 * part + 10)
        table = pyarrow.table({"img": images[rows], "label": [0, 1] * 5, "caption": [f"c{part}{i}" for i in range(10)]})
        table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
        parquet.write_table(table, tmp_path / f"train-{part}.parquet", row_group_size=4)
    source = open_source(tmp_path)
    assert source.conditions.spec.names == ("ant", "bee") and source.conditions.strata.tolist() == [0, 1] * 10
    assert [source.read(row) for row in range(20)] == images[:20] and source.where(12).endswith("train-1.parquet[2]")
    texts, further = captions_of(open_source(tmp_path, classes=False))
    assert texts == [f"c{i // 10}{i % 10}" for i in range(20)] and not further


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a", "b"]}, r"has the columns text \(string\); expected image files in one column"),
        ({"a": [b"x", b"y"], "b": [b"x", b"y"]}, "or in one called 'image'"),
        ({"image": [b"x", b"y"], "label": [0, None]}, "row 1 has the class None in 'label', and 1 rows have no class"),
        ({"image": [b"x", b"y"], "label": [-1, 1]}, "row 0 has the class -1"),
        ({"image": pyarrow.array([], pyarrow.binary())}, "holds no image"),
    ],
)
def test_other_tables_are_refused(tmp_path, columns, message):
    parquet.write_table(pyarrow.table(columns), tmp_path / "set.parquet")
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "set.parquet")


def test_damage_and_missing_images_are_named(tmp_path, folder):  # noqa: F811
    path = write_parquet(folder, tmp_path / "set.parquet")
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-5])
    with pytest.raises(ValueError, match="set.parquet cannot be read as Parquet"):
        open_source(path)
    parquet.write_table(pyarrow.table({"image": [b"x", None]}), path)
    with pytest.raises(ValueError, match=r"set.parquet\[1\] is missing from its row"):
        open_source(path).read(1)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="holds both images and .parquet archives"):
        open_source(tmp_path)
