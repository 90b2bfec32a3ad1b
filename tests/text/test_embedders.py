"""tau: unit rows, one a caption, from whichever text encoder is named."""

import json
from importlib import metadata

import pytest
import torch
from safetensors.torch import save_file

from irdm.text import embedders
from irdm.text.embedders import embedded, open_embedder

CAPTIONS = ["a red apple on a table", "a red apple on the table", "two dogs run in snow", "a red apple on a table"]


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """A folder as open_clip saves one, with a text tower of random weights that reads eight tokens."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("tower")
    vision = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    model = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    torch.manual_seed(3)
    network = open_clip.model.CLIP(24, vision, text)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    return folder, network.eval(), open_clip.get_tokenizer(f"local-dir:{folder}")


def test_rows_are_of_unit_length_each_caption_is_embedded_once_and_the_cache_is_read(tmp_path, monkeypatch):
    tau, identity, cut = embedded(CAPTIONS, "ngrams", folder=tmp_path)
    assert tau.shape == (4, 256) and cut == 0 and identity == "ngrams-1"
    torch.testing.assert_close(tau.norm(dim=1), torch.ones(4))
    assert torch.equal(tau[0], tau[3]) and tau[0] @ tau[1] > 0.6 > 0.3 > abs(tau[0] @ tau[2])
    monkeypatch.setattr(embedders, "open_embedder", None)
    assert torch.equal(embedded(CAPTIONS, "ngrams", folder=tmp_path)[0], tau), "from the file"


def test_a_text_tower_of_open_clip_is_that_of_open_clip_and_counts_what_it_cuts(tower, tmp_path):
    folder, network, tokenizer = tower
    tau, identity, cut = embedded(CAPTIONS[:3], str(folder), folder=tmp_path)
    with torch.no_grad():
        expected = network.encode_text(tokenizer(CAPTIONS[:3]), normalize=True)
    torch.testing.assert_close(tau, expected)
    assert cut == 0 and identity.startswith(f"{folder.name}@")
    embedder = open_embedder(str(folder))
    assert embedder.identity == identity and embedder.width == 24
    long = "one two three four five six seven eight nine"
    assert embedder.cut([*CAPTIONS, long]) == 1
    with pytest.raises(ValueError, match=r"1 of 2 different captions are longer .* at most 5% may be"):
        embedded([CAPTIONS[0], long], str(folder), folder=tmp_path)
    with torch.no_grad():
        network.text_projection.mul_(2)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    assert embedded(CAPTIONS[:3], str(folder), folder=tmp_path)[1] != identity, "other weights are another encoder"


def test_minilm_knows_a_paraphrase():
    try:
        metadata.distribution(embedders.MINILM)
    except metadata.PackageNotFoundError:
        pytest.skip("the package is not installed")
    pairs = ["a man is playing a guitar", "somebody plays a stringed instrument", "the stock market fell on Monday"]
    embedder = open_embedder("minilm")
    tau = embedder.embed(pairs)
    assert tau.shape == (3, 384) and tau[0] @ tau[1] > 0.4 > 0.2 > tau[0] @ tau[2]
    torch.testing.assert_close(embedder.embed(pairs[:1]), tau[:1], atol=1e-5, rtol=0)  # padding plays no part
    assert embedder.cut(["word " * 300, *pairs]) == 1
    assert embedder.identity.startswith("minilm@")


def test_what_cannot_be_opened_is_one_error(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="There is no text encoder 'clip': expected siglip2, minilm"):
        open_embedder("clip")
    with pytest.raises(ValueError, match="expected open_clip:MODEL/TAG"):
        open_embedder("open_clip:ViT-B-32")
    monkeypatch.setattr(embedders, "MINILM", "no-such-package")
    with pytest.raises(ValueError, match="'minilm' cannot be loaded: the package no-such-package is not installed"):
        open_embedder("minilm")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"cannot be loaded"):
        open_embedder(str(tmp_path))
