"""Bundles of the authors' release: read exactly, or refused in one line before anything is written."""

import pytest
import torch

from irdm.cli import main
from irdm.conditions import ClassSpec, PromptSpec
from irdm.distances import NystromMMDConfig
from irdm.encoders.panel import PANEL
from irdm.reference import open_reference
from irdm.reference.imported import ImportedReference, import_reference, is_imported, to_judge

C, M = 6, 12
SPEC = PromptSpec(embedder="siglip2", width=C)
ENCODERS = ("mae", "dreamsim")


def bundle(encoder="mae", **more):
    """As the release writes it, with a large mean, which features have."""
    draws = torch.Generator().manual_seed(len(encoder))
    d = PANEL[encoder].dim
    rows = torch.cat([20 + torch.randn(M, d, generator=draws), 3 * torch.randn(M, C, generator=draws)], dim=1)
    body = {"Z": rows, "alpha": torch.rand(M, generator=draws) / M, "sigma": 40.0, "k_rr": 0.4, "beta": 32.0}
    return {**body, "M": M, "d_in": d + C, "sigma_scale": 0.25, "s_txt": 1.25, "d_img": d, "d_txt": C, **more}


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "nystrom_joint"
    place.mkdir()
    for encoder in ENCODERS:
        torch.save(bundle(encoder), place / f"{encoder}_joint_M{M}.pt")
    return place


def training(reference, names=("mae",), joint=True, **fields):
    return reference.training(names, NystromMMDConfig(**fields), joint=joint, rollout=64, seed=0)


def test_the_distance_is_that_of_the_bundle(folder, tmp_path):
    """L = mean k(g, g') - 2 mean k(g, Z) alpha + k_rr on [phi | beta tau], in float64, as the release computes it."""
    reference = import_reference("headline", [folder], tmp_path / "headline")
    assert reference.names == ("dreamsim", "mae") and reference.tau_width == C
    fitted = training(ImportedReference(tmp_path / "headline"), ENCODERS, landmarks=8192, scale=0.25)
    assert fitted.floors == {"mae": None, "dreamsim": None}
    for encoder, distance in fitted.distances.items():
        given = bundle(encoder)
        phi, tau = 20 + torch.randn(9, PANEL[encoder].dim), torch.nn.functional.normalize(torch.randn(9, C), dim=1)
        joint = torch.cat([phi, given["beta"] * tau], dim=1).double()
        kernel = lambda a, b: torch.exp(-torch.cdist(a, b).square() / (2 * given["sigma"] ** 2))  # noqa: B023, E731
        pull = (kernel(joint, given["Z"].double()) @ given["alpha"].double()).mean()
        expected = kernel(joint, joint).mean() - 2 * pull + given["k_rr"]
        assert distance(phi, tau).item() == pytest.approx(expected.item(), rel=1e-5)
        assert distance.config.scale == 0.25 and distance.config.condition_bandwidth == 1.25


def test_a_file_of_several_encoders_is_the_same_reference(folder, tmp_path):
    torch.save({encoder: bundle(encoder) for encoder in ENCODERS}, tmp_path / "all.pt")
    one = import_reference("a", [tmp_path / "all.pt"], tmp_path / "a")
    assert one.names == ENCODERS
    again = import_reference("b", sorted(folder.iterdir()), tmp_path / "b")
    for encoder in ENCODERS:
        left, right = (training(each, [encoder]).distances[encoder].state_dict() for each in (one, again))
        assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def save(folder, body, name="mae_joint_M12.pt"):
    for path in folder.iterdir():
        path.unlink()
    torch.save(body, folder / name)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({k: v for k, v in bundle().items() if k != "beta"}, "lacks beta; a joint one has Z, alpha"),
        ({}, "has nothing and lacks Z, alpha"),
        ([1, 2], "holds a list, expected"),
        (bundle(Z=bundle()["Z"][:, :1024]), r"has Z \(12, 1024\) .*1024 features of mae"),
        (bundle("dreamsim"), "says .*'d_img': 1792.*but mae has 1024 features"),
        (bundle(alpha=torch.ones(M - 1)), r"alpha \(11,\)"),
        (bundle(sigma=-1.0), "sigma -1, .*must be positive"),
        (bundle(k_rr=float("nan")), "k_rr nan"),
        (bundle(alpha=torch.full((M,), torch.inf)), "all of Z and alpha finite"),
        (bundle(beta="large"), "expected Z and alpha as tensors, the others as numbers"),
    ],
)
def test_a_file_that_is_no_bundle_is_refused(folder, tmp_path, body, says):
    save(folder, body)
    with pytest.raises(ValueError, match=says):
        import_reference("x", [folder], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_unknown_encoders_and_unlike_texts_are_refused(folder, tmp_path):
    torch.save(bundle(), folder / "maee_joint_M12.pt")
    with pytest.raises(ValueError, match="no encoder 'maee'; did you mean 'mae'"):
        import_reference("x", [folder], tmp_path / "x")
    save(folder, bundle())
    torch.save(bundle("clip", Z=bundle("clip")["Z"][:, :-1], d_txt=C - 1), folder / "clip_joint_M12.pt")
    with pytest.raises(ValueError, match="unlike widths: {'clip': 5, 'mae': 6}"):
        import_reference("x", [folder], tmp_path / "x")


def test_code_in_a_file_does_not_run(folder, tmp_path):
    class Runs:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save({"Z": Runs()}, folder / "clip_joint_M12.pt")
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        import_reference("x", [folder], tmp_path / "x")
    assert not (tmp_path / "ran").exists()


def test_places_without_bundles_and_names_in_use_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "absent.pt"):
        with pytest.raises(ValueError, match="is no .pt file"):
            import_reference("x", [place], tmp_path / "x")
    import_reference("x", [folder], tmp_path / "x")
    with pytest.raises(ValueError, match="is there already"):
        import_reference("x", [folder], tmp_path / "x")


def test_it_trains_what_it_is_of_and_nothing_else(folder, tmp_path):
    reference = import_reference("x", [folder], tmp_path / "x")
    reference.check(SPEC)
    with pytest.raises(ValueError, match="6 columns, and the data has captions in 384 columns.*siglip2"):
        reference.check(PromptSpec(embedder="minilm", width=384))
    with pytest.raises(ValueError, match="has no captions"):
        reference.check(ClassSpec(names=tuple("abcdef")))
    with pytest.raises(ValueError, match="imported without clip: it has dreamsim, mae"):
        training(reference, ["clip"])
    with pytest.raises(ValueError, match="distance.kernel is laplace"):
        training(reference, kernel="laplace")
    with pytest.raises(ValueError, match="joint is false"):
        training(reference, joint=False)


def test_nothing_is_judged_by_it(folder, tmp_path):
    path = import_reference("x", [folder], tmp_path / "x").path
    assert is_imported(path) and not is_imported(tmp_path)
    assert to_judge(path) is None and to_judge(None) is None and to_judge(tmp_path) == tmp_path
    with pytest.raises(ValueError, match="was imported: it has distances to train with and no real images"):
        open_reference(path)


def test_a_damaged_part_is_noticed(folder, tmp_path):
    path = import_reference("x", [folder], tmp_path / "x").path
    file = path / "training/mae/distance.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="was altered"):
        training(ImportedReference(path))
    file.write_bytes(data[:-1])
    with pytest.raises(ValueError, match="has .* bytes"):
        ImportedReference(path)


def test_by_command(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reference", "import", "headline", str(folder)]) == 0
    assert main(["reference", "show", "headline"]) == 0
    said = capsys.readouterr().out
    assert "mae              12 landmarks, 0.25 of the median, text at 1.25" in said
    assert "floors     not in it" in said and "real rows  not in it" in said
    assert main(["eval", "x", "--against", "references/headline"]) == 1
    assert main(["reference", "import", "a/b", str(folder)]) == 2
    assert "plain name" in capsys.readouterr().err
