"""A tiny random CLIP with its processor, saved as the published PickScore is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch


def write_pickscore(root: Path) -> Path:
    """`root/model` and `root/processor`, as transformers saves them; skips the test where it is not installed."""
    transformers = pytest.importorskip("transformers")
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    end = len(words) - 1
    torch.manual_seed(0)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    config = transformers.CLIPConfig(
        text_config=layers | special | {"vocab_size": len(words), "max_position_embeddings": 77},
        vision_config=layers | {"image_size": 24, "patch_size": 8},
        projection_dim=12,
    )
    model = transformers.CLIPModel(config)
    with torch.no_grad():
        for weight in model.parameters():  # the usual initialisation is too small to tell images apart
            if weight.ndim > 1:
                weight.mul_(10)
    model.save_pretrained(root / "model", safe_serialization=True)
    processor = root / "processor"
    processor.mkdir()
    (processor / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (processor / "merges.txt").write_text("#version: 0.2\n")
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (processor / "tokenizer_config.json").write_text(
        json.dumps(names | {"pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer", "model_max_length": 77})
    )
    (processor / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "CLIPImageProcessor",
                "processor_class": "CLIPProcessor",
                "size": {"shortest_edge": 24},
                "crop_size": {"height": 24, "width": 24},
                "image_mean": [0.48, 0.46, 0.41],
                "image_std": [0.27, 0.26, 0.28],
            }
        )
    )
    return root
