"""PickScore and CLIPScore on a tiny random CLIP and its processor, saved as the real ones are."""

from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_pickscore import write_pickscore

from irdm.metrics.clipscore import ClipScore
from irdm.metrics.pickscore import PickScore, pickscore, win_rate

PROMPTS = ["a photo of a cat", "a photo of a dog", "two green apples on a table in the sun"] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pickscore(tmp_path_factory.mktemp("pickscore"))


def pictures(count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (count, 30, 40, 3), generator=rng, dtype=torch.uint8)
    return [Image.fromarray(pixels.numpy()) for pixels in noise]


def test_scores_are_the_logits_of_each_picture_with_its_own_prompt(folder):
    scorer, images = PickScore.load(folder), pictures(len(PROMPTS))
    found = scorer.scores(images, PROMPTS)
    inputs = scorer.processor(images=images, text=PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = scorer.model(**inputs).logits_per_image.diagonal()
    torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=1e-4)
    assert found.std() > 1e-3
    for micro_batch in (1, 5):
        torch.testing.assert_close(scorer.scores(iter(images), PROMPTS, micro_batch), found, rtol=1e-5, atol=1e-5)


def test_both_answers_of_get_image_features_are_understood(folder):
    """transformers 4 returns the projected embedding, 5 an object whose pooled part it is."""
    scorer, images = PickScore.load(folder), pictures(2)
    expected = scorer.scores(images, PROMPTS[:2])
    model = scorer.model

    class Four(torch.nn.Module):
        logit_scale = model.logit_scale

        @staticmethod
        def _rows(output):
            return output if isinstance(output, torch.Tensor) else output.pooler_output

        def get_image_features(self, **inputs):
            return self._rows(model.get_image_features(**inputs))

        def get_text_features(self, **inputs):
            return self._rows(model.get_text_features(**inputs))

    torch.testing.assert_close(PickScore(Four(), scorer.processor).scores(images, PROMPTS[:2]), expected)


def test_weights_that_do_not_fit_are_not_filled_with_noise(folder, tmp_path):
    spoiled = shutil.copytree(folder, tmp_path / "spoiled")
    (spoiled / "model" / "config.json").unlink()  # transformers would take its default sizes
    with pytest.raises(ValueError, match="PickScore cannot be loaded"):
        PickScore.load(spoiled)
    tensors = load_file(folder / "model" / "model.safetensors")
    shutil.copy(folder / "model" / "config.json", spoiled / "model")
    tensors.pop("visual_projection.weight")
    save_file(tensors, spoiled / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing .* visual_projection.weight"):
        PickScore.load(spoiled)


def test_missing_files_and_wrong_pictures_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"cannot be loaded from .*model.*\n?.*Give a folder"):
        PickScore.load(tmp_path)
    scorer = PickScore.load(folder)
    with pytest.raises(ValueError, match="Got 2 images for 3 prompts"):
        scorer.scores(pictures(2), PROMPTS[:3])
    with pytest.raises(ValueError, match="more images than the 1 prompts"):
        scorer.scores(pictures(2), PROMPTS[:1])
    deep = Image.fromarray(torch.full((30, 30), 40_000, dtype=torch.int32).numpy())
    with pytest.raises(ValueError, match="mode I, expected 8 bits"):
        scorer.scores([deep], PROMPTS[:1])


def test_the_mean_and_its_interval():
    scores = torch.randn(400, dtype=torch.float64) + 20
    score = pickscore(scores, scores + 1)["pickscore"]
    result, half = score.mean, 1.96 * scores.std().item() / 20
    assert result.value == pytest.approx(scores.mean().item())
    assert result.ci95 == pytest.approx((result.value - half, result.value + half), abs=0.15 * half)
    assert sum(result.replicates) / 10 == pytest.approx(result.value)
    assert result.control == pytest.approx(result.value + 1)
    assert (score.label, score.direction, score.notes) == ("PickScore", "higher", {"rows": 400})


def test_the_win_rate_counts_pairs_and_half_of_the_ties():
    ours = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8]).double()
    theirs = torch.tensor([0.0, 1, 3, 5, 6, 7, 8, 9]).double()
    rate, difference = win_rate(ours, theirs)
    assert rate.value == 2.5 / 8
    assert difference.value == pytest.approx(-3 / 8)
    luck = torch.randn(300, dtype=torch.float64)
    assert win_rate(luck + 0.01, luck)[0].ci95 == (1.0, 1.0)
    low, high = win_rate(torch.randn(300).double(), luck)[0].ci95
    assert low < 0.5 < high


def test_scores_that_do_not_pair_are_refused(unchecked):
    scores = torch.zeros(10, dtype=torch.float64)
    with pytest.raises(ValueError, match="10 and 9 scores"):
        win_rate(scores, scores[:9])
    with pytest.raises(ValueError, match="Got 7 scores"):
        pickscore(scores[:7])
    with pytest.raises(ValueError, match="finite"):
        pickscore(scores + torch.nan)


def test_clipscore_is_a_hundred_times_the_cosine_of_unit_embeddings(folder):
    """As torchmetrics defines it; the logits of transformers are the same cosines on another scale."""
    scorer, images = ClipScore.load(folder), pictures(len(PROMPTS))
    inputs = scorer.processor(images=images, text=PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = scorer.model(**inputs).logits_per_image.diagonal() / scorer.model.logit_scale.exp()
    found = scorer.scores(images, PROMPTS, 5)
    torch.testing.assert_close(found, 100 * logits.double(), rtol=1e-4, atol=1e-3)
    (score,) = scorer.summary(found).values()
    assert score.mean.value == pytest.approx(max(100 * logits.mean().item(), 0), rel=1e-4, abs=1e-3)
    assert (score.label, score.direction, score.mean.control) == ("CLIPScore", "higher", None)


def test_a_clipscore_is_never_negative(folder):
    score = ClipScore.load(folder).summary(torch.linspace(-3, -1, 20, dtype=torch.float64))["clipscore"].mean
    assert (score.value, score.ci95) == (0, (0, 0))


def test_each_scorer_says_what_is_missing_of_it(tmp_path):
    with pytest.raises(ValueError, match=r"CLIPScore cannot be loaded[\s\S]*clipscore/model[\s\S]*fetch clipscore"):
        ClipScore.load(tmp_path)
