"""Floors: what fresh real rows score on average, whatever the classes, the rollout and the number held out.

The real data are mixtures of Gaussians far apart, so that most of the spread is between the classes: a floor from rows
drawn by another law than the generator's conditions is several times off.
"""

import pytest
import torch
from pydantic import TypeAdapter

from irdm.conditions import Classes, Unconditional, draw
from irdm.controller import Controller, ControllerConfig
from irdm.distances import AnyDistance, ExactMMDConfig, NystromMMD, NystromMMDConfig
from irdm.distances.kernel import MMD
from irdm.ops.sampling import generator_for
from irdm.reference.fit import fit_distance, fit_reference, floor_of, floors_or_error

D = 6
CENTRES = 3 * torch.randn(4, D, generator=generator_for("centres"))
MMDS = {
    "nystrom": {"kind": "nystrom-mmd", "landmarks": 100},
    "energy": {"kind": "nystrom-mmd", "kernel": "energy", "landmarks": 100},
    "two bandwidths": {"kind": "nystrom-mmd", "bandwidths": (0.3, 1.0), "kernel": "laplace"},
    "unbiased": {"kind": "nystrom-mmd", "repulsion": "unbiased", "scale": 0.5},
    "exact": {"kind": "exact-mmd"},
    "rff": {"kind": "rff-mmd", "features": 500, "bandwidths": (0.5, 1.0)},
}
OTHERS = {kind: {"kind": kind} for kind in ("sliced-wasserstein", "frechet", "drifting")}
SHARES = {"balanced": (0.25, 0.25, 0.25, 0.25), "nine to one": (0.9, 0.1), "none": (0.25, 0.25, 0.25, 0.25)}


def config_of(fields):
    return TypeAdapter(AnyDistance).validate_python(fields)


def labels_of(classes, n):
    """Exactly in proportion."""
    counts = [round(share * n) for share in SHARES[classes]]
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def conditions_of(classes, labels):
    return Unconditional(len(labels)) if classes == "none" else Classes(labels, list("abcd"))


def rows_of(labels, *keys):
    return CENTRES[labels] + 0.8 * torch.randn(len(labels), D, generator=generator_for("rows", *keys))


def real(classes, n, *keys):
    """Fresh rows and their conditions. Without classes every row's component is random."""
    labels = labels_of(classes, n)
    if classes == "none":
        labels = torch.randint(4, (n,), generator=generator_for("component", *keys))
    return rows_of(labels, *keys), conditions_of(classes, labels)


def fresh_scores(distance, classes, conditions, rollout, joint, times):
    """What new real rows score whose conditions are drawn as training draws the generator's."""
    values = []
    for k in range(times):
        if classes == "none":
            rows, tau = real(classes, rollout, "fresh", k)[0], None
        else:
            asked = conditions[draw(conditions, rollout, "train", 0, k)]
            rows, tau = rows_of(asked.labels, "fresh", k), asked.tau[0:rollout] if joint else None
        values.append(distance(rows, tau, step=None if isinstance(distance, MMD) else k % 8).item())
    return torch.tensor(values, dtype=torch.float64)


def check(fields, classes, joint, train_rows, n, rollout, *, held_out_sets, times):
    """The mean floor over many held-out sets is the mean score of fresh real rows, to 10%.

    An unbiased MMD of real rows is about 0: there it is 10% of what a row's kernel with itself would add.
    """
    train, conditions = real(classes, train_rows, "train")
    distance = config_of(fields).build().fit(train, conditions.tau if joint else None)
    floors = []
    for k in range(held_out_sets):
        val, held_out = real(classes, n, "val", k)
        floors.append(floor_of(distance, val, (conditions, held_out), joint=joint, rollout=rollout, seed=k))
    floors, fresh = torch.tensor(floors), fresh_scores(distance, classes, conditions, rollout, joint, times)
    scale = 1 / rollout if "repulsion" in fields else fresh.mean().abs().item()
    assert all(found.std() / len(found) ** 0.5 < 0.05 * scale for found in (floors, fresh)), "too few draws to tell"
    assert fresh.mean().item() == pytest.approx(floors.mean().item(), abs=0.1 * scale)


SETTINGS = {"marginal, balanced": ("balanced", False), "joint, nine to one": ("nine to one", True)}


@pytest.mark.parametrize(("name", "setting"), [*zip(MMDS | OTHERS, [*SETTINGS] * 5, strict=False)])
def test_a_rollout_below_the_held_out_rows(name, setting):
    check((MMDS | OTHERS)[name], *SETTINGS[setting], 400, 200, 40, held_out_sets=16, times=160)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", MMDS)
def test_a_rollout_above_the_held_out_rows(name, setting):
    """Few training rows: their own distance from the population is then well above the noise of the held-out ones."""
    classes, joint = SETTINGS[setting]
    classes = "balanced" if name == "unbiased" else classes  # few of a class: too noisy so near to zero
    check(MMDS[name], classes, joint, 100, 140, 400, held_out_sets=160, times=50)


@pytest.mark.parametrize("rollout", [64, 280])
def test_without_classes(rollout):
    check(MMDS["nystrom"], "none", False, 40, 140, rollout, held_out_sets=120, times=100)


@pytest.mark.parametrize("name", [name for name in MMDS if name != "unbiased"])
def test_never_negative(name):
    """From 100 rows for 2048, where half of all differences from the limit are below it. The least is b / rollout."""
    train, conditions = real("balanced", 2000, "train")
    distance = config_of(MMDS[name]).build().fit(train)
    floors = []
    for k in range(8):
        val, held_out = real("balanced", 100, "val", k)
        floors.append(floor_of(distance, val, (conditions, held_out), joint=False, rollout=2048, seed=0))
    truth = fresh_scores(distance, "balanced", conditions, 2048, False, 4).mean().item()
    assert min(floors) > 0.3 * truth
    assert sum(floors) / len(floors) < 3 * truth


def test_held_out_rows_of_other_frequencies_are_drawn_as_training_draws():
    """Balanced held-out images of nine-to-one training data: two thirds of them are not needed."""
    train, conditions = real("nine to one", 400, "train")
    distance = NystromMMD().fit(train)
    labels = torch.arange(400) % 2
    held_out, said = Classes(labels, list("abcd")), []
    val = rows_of(labels, "val")
    options = {"joint": False, "rollout": 40, "seed": 0}
    reference = fit_reference(
        NystromMMDConfig(), {"x": train}, {"x": val}, (conditions, held_out), progress=said.append, **options
    )
    fresh = fresh_scores(distance, "nine to one", conditions, 40, False, 200).mean().item()
    assert reference.floors["x"] == pytest.approx(fresh, rel=0.3)
    assert "of 400 held-out rows, in the proportions" in said[0] and said[1].startswith("x: 400 real rows fitted")


def test_beyond_the_held_out_rows_only_an_mmd_has_a_floor():
    train, conditions = real("balanced", 200, "train")
    val, held_out = real("balanced", 60, "val")
    floors = {
        name: fit_distance(config_of(fields), train, val, (conditions, held_out), joint=True, rollout=100, seed=0)[1]
        for name, fields in (MMDS | OTHERS).items()
    }
    assert {name for name, floor in floors.items() if floor is None} == set(OTHERS)
    with pytest.raises(
        ValueError,
        match="drifting, frechet, sliced-wasserstein: the rollout is 100 and only 60 real.*"
        "Lower the rollout to 60, hold out more images, take an MMD .* --controller.kind uniform",
    ):
        floors_or_error(floors, held_out=60, rollout=100)
    with pytest.raises(ValueError, match="frechet"):
        Controller(ControllerConfig(), floors)
    known = {name: floor for name, floor in floors.items() if floor is not None}
    assert floors_or_error(known, held_out=60, rollout=100) == known


def test_rows_that_are_alone_in_their_class():
    """They say nothing of their class's own kernel: left out while few, refused when they are most."""
    train, conditions = real("balanced", 200, "train")
    names = [str(k) for k in range(40)]
    few = torch.cat([torch.arange(4).repeat_interleave(20), torch.arange(4, 14)])
    most = torch.arange(40)
    for labels, refused in ((few, False), (most, True)):
        val = rows_of(labels % 4, "val")
        both = (Classes(labels.repeat(4), names), Classes(labels, names))
        fit = lambda val=val, both=both: fit_distance(  # noqa: E731
            NystromMMDConfig(), val.repeat(4, 1), val, both, joint=False, rollout=500, seed=0
        )
        if refused:
            with pytest.raises(
                ValueError, match="Of 40 held-out rows 40 are the only one of their class.*rollout to 40"
            ):
                fit()
        else:
            assert fit()[1] > 0


def test_too_few_held_out_rows_are_refused():
    train, conditions = real("balanced", 200, "train")
    val, held_out = real("balanced", 28, "val")
    with pytest.raises(ValueError, match="Found 28 held-out .* expected at least 32"):
        fit_distance(NystromMMDConfig(), train, val, (conditions, held_out), joint=False, rollout=10, seed=0)
    with pytest.raises(ValueError, match="200 training and 28 held-out rows with 200 and 27 conditions"):
        fit_distance(NystromMMDConfig(), train, val, (conditions, held_out[:27]), joint=False, rollout=10, seed=0)


class Stored:
    """Rows that are not a tensor."""

    def __init__(self, rows):
        self._rows, self.shape = rows, tuple(rows.shape)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        return self._rows[index]


@pytest.mark.parametrize("rollout", [64, 300])
@pytest.mark.parametrize("config", [NystromMMDConfig(), ExactMMDConfig()])
def test_the_seed_decides_the_draws_and_a_store_is_read_like_a_tensor(config, rollout):
    (train, a), (val, b) = real("balanced", 200, "train"), real("balanced", 100, "val")

    def floor(train, val, seed):
        return fit_distance(config, train, val, (a, b), joint=True, rollout=rollout, seed=seed)[1]

    assert floor(train, val, 0) == floor(Stored(train), Stored(val), 0)
    assert (floor(train, val, 0) != floor(train, val, 1)) == (rollout == 64)
