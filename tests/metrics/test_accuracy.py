"""Label accuracy: a vote of neighbours in feature space, against scikit-learn's."""

from __future__ import annotations

import pytest
import torch
from metrics.tables import classed, clusters, real_side, table
from sklearn.neighbors import KNeighborsClassifier

from irdm.conditions import Classes
from irdm.metrics import EvaluationConfig
from irdm.metrics.accuracy import label_accuracy, vote

CONFIG = EvaluationConfig()


def labels(n, classes=3):
    return torch.arange(n) % classes


REAL = real_side(classed(labels(210), 0, apart=0.5), classed(labels(90), 1, apart=0.5), ["b"])


def test_agrees_with_scikit_learn_wherever_the_vote_has_one_winner():
    rows = clusters(labels(240), 2, apart=0.5)
    found = label_accuracy(table(rows, Classes(labels(240), "abc")), REAL, CONFIG)["label_accuracy"]
    for name in ("a", "b"):
        known = REAL.train.features[name], REAL.train.conditions.labels
        oracle = KNeighborsClassifier(5).fit(known[0].numpy(), known[1].numpy())
        shares = oracle.predict_proba(rows[name].numpy())
        clear = torch.from_numpy((shares == shares.max(1, keepdims=True)).sum(1) == 1)
        correct = torch.from_numpy(shares.argmax(1)) == labels(240)
        assert 0 < (~clear).sum() < 60
        value = round(found.encoders[name].value * 240)
        assert correct[clear].sum() <= value <= correct[clear].sum() + (~clear).sum()
        nearest = oracle.kneighbors(rows[name].numpy())[1]
        ours = vote(known[1][torch.from_numpy(nearest)])
        assert (ours[clear] == torch.from_numpy(shares.argmax(1))[clear]).all()
        assert value == (ours == labels(240)).sum()
    assert found.held_out.value == found.encoders["b"].value


def test_a_tie_goes_to_the_nearest():
    nearest_first = torch.tensor([[2, 1, 1, 0, 2], [0, 1, 1, 2, 2], [3, 1, 2, 2, 1], [4, 4, 4, 4, 4], [0, 1, 2, 3, 4]])
    assert vote(nearest_first).tolist() == [2, 1, 1, 4, 0]


def test_wrong_labels_are_counted():
    clear = real_side(classed(labels(210), 0), classed(labels(90), 1))
    right = classed(labels(120), 3)
    assert label_accuracy(right, clear, CONFIG)["label_accuracy"].mean.value == 1
    wrong = torch.where(torch.arange(120) < 30, (labels(120) + 1) % 3, labels(120))
    score = label_accuracy(table(right.features, Classes(wrong, "abc")), clear, CONFIG)["label_accuracy"]
    assert score.mean.value == pytest.approx(0.75) and score.mean.control == 1
    assert score.mean.ci95[1] <= 1 and "5 nearest train images" in score.says


def test_there_is_none_without_classes_or_with_others():
    rows = clusters(labels(60), 3)
    assert label_accuracy(table(rows), REAL, CONFIG) == {}
    assert label_accuracy(table(rows, Classes(labels(60), "abd")), REAL, CONFIG) == {}
    plain = real_side(clusters(labels(60), 0), clusters(labels(60), 1))
    assert label_accuracy(table(rows), plain, CONFIG) == {}
