"""The scorer without mmcv: its decoding against a slow one, its colours and files; of networks with random weights."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
from geneval.small import rendered_folder
from PIL import Image

from irdm.geneval.detector import Colours, Detector, TransformersScorer, crop, decode, network_input
from irdm.geneval.layout import rendered
from irdm.geneval.prompts import COLOURS, OBJECTS
from irdm.geneval.rules import Detection
from irdm.geneval.verdicts import read_verdicts


@pytest.fixture(scope="module")
def mask2former():
    """transformers' class, small."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    torch.manual_seed(0)
    backbone = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    sizes = {"feature_size": 32, "hidden_dim": 32, "mask_feature_size": 32, "dim_feedforward": 32}
    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=backbone,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            num_queries=10,
            num_labels=80,
            encoder_feedforward_dim=32,
            **sizes,
        )  # fmt: skip
    )


@pytest.fixture(scope="module")
def clip():
    """open_clip's class and its own tokenizer, small."""
    import open_clip
    from open_clip.transform import image_transform

    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    return Colours(model, image_transform(32, is_train=False), open_clip.get_tokenizer("ViT-L-14"))


def test_the_input_is_the_picture_enlarged_normalised_and_padded():
    grey = Image.new("RGB", (300, 200), (124, 116, 104))
    pixels, resized = network_input(grey, 800, 1333)
    assert resized == (800, 1200) and pixels.shape == (1, 3, 800, 1216)
    assert pixels[..., :1200].abs().max() < 0.02 and (pixels[..., 1200:] == 0).all()
    assert network_input(Image.new("L", (1000, 200)), 800, 1333)[1] == (267, 1333), "the long side decides"


def test_decoding_is_that_of_each_query_and_class_on_its_own():
    """Against loops: each pair's mask, score and box as they are described."""
    classes, masks = torch.randn(6, 5, dtype=torch.float64), 4 * torch.randn(6, 8, 8, dtype=torch.float64)
    masks[0] = -5
    resized, padded, original = (28, 32), (32, 32), (40, 50)
    boxes, scores, labels, on = decode(classes, masks, resized, padded, original)
    probability, enlarge = classes.softmax(1), torch.nn.functional.interpolate
    expected = []
    for query in range(6):
        large = enlarge(masks[query][None, None], padded, mode="bilinear", align_corners=False)
        mask = enlarge(large[..., :28, :32], original, mode="bilinear", align_corners=False)[0, 0]
        inside = mask[mask > 0].sigmoid()
        rows, columns = np.nonzero((mask > 0).numpy())
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0] * 4
        for label in range(4):
            score = probability[query, label].item() * (inside.mean().item() if len(inside) else 0.0)
            expected.append((probability[query, label].item(), score, label, box))
    expected.sort(key=lambda one: -one[0])
    assert labels.tolist() == [one[2] for one in expected] and on.shape == (24, 40, 50)
    assert np.allclose(scores.numpy(), [one[1] for one in expected], rtol=1e-5)
    assert boxes.tolist() == [list(map(float, one[3])) for one in expected]


def test_at_most_a_hundred_pairs_are_kept():
    boxes, scores, _, _ = decode(torch.randn(20, 81), torch.randn(20, 4, 4), (16, 16), (16, 16), (16, 16))
    assert len(boxes) == len(scores) == 100


def test_objects_are_named_by_number_whatever_the_model_calls_them(mask2former):
    detector = Detector(mask2former, short=64, long=96)
    found = detector(Image.effect_noise((48, 32), 60).convert("RGB"))
    assert sum(map(len, found.values())) == 100 and set(found) <= set(OBJECTS)
    assert next(iter(found.values()))[0].mask.shape == (32, 48)


def test_a_model_of_other_classes_is_refused(mask2former):
    class Other:
        config = type("C", (), {"num_labels": 133})

    with pytest.raises(ValueError, match="knows 133 classes, expected the 80"):
        Detector(Other())


def test_an_object_is_shown_alone_on_grey():
    image = Image.new("RGB", (10, 8), "red")
    mask = torch.zeros(8, 10, dtype=torch.bool)
    mask[2:4, 3:6] = True
    shown = np.array(crop(image, Detection((2.0, 2.0, 6.0, 4.0), 0.9, mask)))
    assert shown.shape == (2, 4, 3)
    assert (shown[:, 0] == 0x99).all() and (shown[:, 1:] == [255, 0, 0]).all()


def test_a_colour_is_the_nearest_of_the_means_of_three_texts(clip):
    image = Image.effect_noise((40, 40), 80).convert("RGB")
    objects = [Detection((0.0, 0.0, 20.0, 20.0), 0.9), Detection((10.0, 5.0, 40.0, 40.0), 0.8)]
    texts = [
        [f"a photo of a {colour} cup", f"a photo of a {colour}-colored cup", f"a photo of a {colour} object"]
        for colour in COLOURS
    ]
    with torch.no_grad():
        read = [clip.model.encode_text(clip.tokenizer(three)) for three in texts]
        rows = torch.stack([(three / three.norm(dim=1, keepdim=True)).sum(0) for three in read])
        seen = clip.model.encode_image(torch.stack([clip.transform(crop(image, one)) for one in objects]))
    best = (seen @ (rows / rows.norm(dim=1, keepdim=True)).T).argmax(1)
    assert clip(image, objects, "cup") == [COLOURS[i] for i in best.tolist()]


def test_a_folder_gets_a_verdict_an_image(tmp_path, mask2former, clip):
    folder, prompts = rendered_folder(tmp_path, samples=1)
    scorer = TransformersScorer(Detector(mask2former, short=64, long=96), clip, {"test": True})
    samples, out = rendered(folder, prompts), tmp_path / "verdicts.jsonl"
    scorer(folder, samples, out)
    verdicts = [json.loads(text) for text in out.read_text().splitlines()]
    assert read_verdicts(out, samples) == [one["correct"] for one in verdicts]
    assert [json.loads(one["metadata"]) for one in verdicts] == [prompt.metadata for prompt in prompts.prompts]
    assert all(one["correct"] == (not one["reason"]) and one["tag"] for one in verdicts)
    assert all(math.isfinite(number) for one in verdicts for boxes in json.loads(one["details"]).values()
               for box in boxes for number in box)  # fmt: skip


def test_a_folder_is_loaded_whole_or_not_at_all(tmp_path, mask2former):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "mask2former"
    mask2former.save_pretrained(folder)
    assert Detector.load(folder).short == 800
    weights = load_file(folder / "model.safetensors")
    save_file({name: w for name, w in weights.items() if "class_predictor" not in name}, folder / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    with pytest.raises(ValueError, match="lacks 2 weights of its network, such as class_predictor"):
        Detector.load(folder)
    with pytest.raises(ValueError, match="is no Mask2Former"):
        Detector.load(tmp_path)
    with pytest.raises(ValueError, match="needs a folder of a Mask2Former"):
        TransformersScorer.load(None)


def test_both_networks_are_loaded_from_disk_and_named_by_their_hashes(tmp_path, mask2former, monkeypatch):
    import open_clip

    monkeypatch.setattr("irdm.geneval.detector.CLIP", "ViT-S-32-alt")  # the smallest that open_clip knows
    mask2former.save_pretrained(tmp_path / "mask2former")
    weights = open_clip.create_model("ViT-S-32-alt", force_quick_gelu=True).state_dict()
    torch.save(weights, tmp_path / "clip.pt")
    scorer = TransformersScorer.load(tmp_path / "mask2former", tmp_path / "clip.pt")
    found = scorer.colours.model.state_dict()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in
              (tmp_path / "clip.pt", tmp_path / "mask2former/model.safetensors")]  # fmt: skip
    assert [scorer.identity["clip"], scorer.identity["files"]["model.safetensors"]] == hashes


def test_clip_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("irdm.geneval.detector.CLIP", "ViT-S-32-alt")  # the smallest that open_clip knows
    (tmp_path / "clip.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="--clip FILE"):
        Colours.load(tmp_path / "clip.pt")
