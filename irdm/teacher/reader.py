"""The text encoder of the world: it learns to say what a sentence asks for, and is then frozen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irdm.generators.klein_world import READING, reader_config
from irdm.ops.sampling import generator_for
from irdm.progress import Say
from irdm.world.language import CHOICES, LONGEST, choices, sentences

if TYPE_CHECKING:
    from diffusers import Flux2KleinPipeline

SENTENCES, FRESH, BATCH, LR = 20_000, 1000, 192, 3e-3


def teach_to_read(pipeline: Flux2KleinPipeline, steps: int, seed: int, say: Say) -> float:
    """Train the text encoder in place; returns the share of fresh sentences whose meaning its last token has right.

    It reads every sentence of the world, as text encoders have read everything; what is held out are pictures. Layers
    after the ninth, whose states klein looks at as well, add nothing.
    """
    from transformers import Qwen3ForCausalLM

    began, tokenizer = time.process_time(), pipeline.tokenizer
    count = min(SENTENCES, steps * BATCH)
    texts = sentences(count + FRESH, seed)
    wanted = choices(texts)
    read = tokenizer(texts, return_tensors="pt", padding="max_length", truncation=True, max_length=LONGEST)
    words, mask = read["input_ids"], read["attention_mask"]
    network = Qwen3ForCausalLM(reader_config(len(tokenizer), READING + 1))
    head = nn.Linear(network.config.hidden_size, sum(CHOICES))
    parameters = [*network.parameters(), *head.parameters()]
    optimizer, draw = torch.optim.AdamW(parameters, lr=LR), generator_for("reading", seed)

    def states(rows: Tensor) -> Tensor:
        found = network.model(words[rows], mask[rows], output_hidden_states=True, use_cache=False)
        return found.hidden_states[READING]

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LR * min(1.0, (step + 1) / 20) * (1 - step / steps)
        rows = torch.randint(count, (BATCH,), generator=draw)
        guesses = head(states(rows)[:, -1]).split(CHOICES, 1)
        loss = torch.stack([F.cross_entropy(guess, wanted[rows, k]) for k, guess in enumerate(guesses)]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    with torch.no_grad():
        seen = states(torch.arange(count, len(texts)))
        guessed = torch.stack([guess.argmax(1) for guess in head(seen[:, -1]).split(CHOICES, 1)], 1)
        right = (guessed == wanted[count:]).all(1).float().mean().item()
        _rescale(network, seen.square().mean().sqrt().item())
        whole = pipeline.text_encoder
        for layer in whole.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        kept = {name: tensor for name, tensor in network.state_dict().items() if f"layers.{READING}." not in name}
        whole.load_state_dict({**whole.state_dict(), **kept})
    spent = time.process_time() - began
    say(f"text encoder: {steps} steps, {right:.1%} of {FRESH} fresh sentences right, {spent:.0f} s")
    return right


def _rescale(network: nn.Module, size: float) -> None:
    """Divide the states by a number: their normalised forms, and so all that is computed of them, stay."""
    for name, weights in network.named_parameters():
        if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
            weights.div_(size)
