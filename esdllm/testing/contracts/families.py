"""The check of model families: the adapter computes one model, however it is divided."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esdllm.checkpoints.loading import Model
from esdllm.interfaces import ModelAdapter, ModelFamily
from esdllm.plugins.catalogue import Catalogue
from esdllm.plugins.offers import Offers
from esdllm.runtime.engine import Engine
from esdllm.runtime.faults import numbers
from esdllm.runtime.plain import full_logits
from esdllm.testing.contracts.generation import SHORT, check_generation, prompts
from esdllm.testing.contracts.laws import close, law, member_laws, pure, tensor_law
from esdllm.views import LoadPlan, ModelSpec

__all__ = ["check_model_family"]

_CPU = torch.device("cpu")


def check_model_family(
    family: ModelFamily,
    config: Mapping[str, Any],
    *,
    folder: Path | None = None,
    reference: Callable[[Tensor], Tensor] | None = None,
    tolerance: float = 1e-4,
) -> None:
    """Check a model family on the CPU: its geometry, its adapter, and whole generations with its model.

    `config` is a small model's config.json. The weights are those of the checkpoint `folder`, or random where none is given.
    `reference` returns the logits (B, L, V) that the model's own code gives of tokens (B, L) int64 with the same weights;
    the plain pass and every step of vanilla decoding must give these within `tolerance`.

    The spec's numbers fit together; shipped checkpoints and geometries can be read; the same seed gives the same weights; a
    position's query, key and value depend on its hidden state and its position alone; a row alone is the row in its batch;
    on the meta device nothing is read.

    Raises:
        AssertionError: a law fails; says which.
    """
    who, offers = member_laws("model", family), Offers.of(family)
    spec = family.spec(config)
    _spec_laws(who, spec)
    for name, geometry in offers.geometries.items():
        _spec_laws(f"{who}'s geometry '{name}'", family.spec(geometry))
    for name, path in offers.checkpoints.items():
        law((path / "config.json").is_file(), f"{who} ships '{name}', but {path} has no config.json")
        _spec_laws(f"{who}'s '{name}'", family.spec(json.loads((path / "config.json").read_text(encoding="utf-8"))))
    plan = LoadPlan(torch.float32, _CPU, seed=None if folder else 0)
    law(
        folder is not None or offers.draws,
        f"{who} draws no random weights (it has no `draws = True`); give a checkpoint's folder",
    )
    adapter = family.load(folder or Path(), config, plan)
    taken = family.weight_bytes(config, plan)
    law(type(taken) is int and taken > 0, f"{who}.weight_bytes gave {taken!r}; give the number of bytes")
    law(adapter.spec == spec, f"{who} loaded a model of {adapter.spec}, and read {spec} from the same config")
    tokens = _tokens(spec)
    again = full_logits(family.load(folder or Path(), config, plan), tokens)
    law(close(again, full_logits(adapter, tokens), 0.0), f"{who} loads other weights the second time")
    _adapter_laws(who, adapter, tolerance)
    if offers.draws:
        _meta_laws(who, family, config)
    _decoding_laws(who, adapter, reference or (lambda tokens: full_logits(adapter, tokens)), tolerance)
    check_generation(model=Model(adapter))


def _spec_laws(who: str, spec: Any) -> None:
    law(isinstance(spec, ModelSpec), f"{who}.spec returned {type(spec).__name__}; return a ModelSpec")
    sizes = ("n_layers", "hidden", "n_heads", "n_kv_heads", "head_dim", "vocab", "context")
    wrong = [f"{name} = {getattr(spec, name)!r}" for name in sizes if type(getattr(spec, name)) is not int]
    law(not wrong, f"{who}: {', '.join(wrong)}; give whole numbers")
    law(min(getattr(spec, name) for name in sizes) >= 1, f"{who}: a size below 1 in {spec}")
    law(spec.n_heads % spec.n_kv_heads == 0, f"{who}: {spec.n_heads} heads share {spec.n_kv_heads} key heads unevenly")
    for name in ("mask_id", "eos_id"):
        law(
            0 <= getattr(spec, name) < spec.vocab,
            f"{who}: {name} = {getattr(spec, name)} of a vocabulary of {spec.vocab}",
        )
    law(spec.logit_shift in (0, 1), f"{who}: logit_shift = {spec.logit_shift}; the runtime knows 0 and 1")


def _tokens(spec: ModelSpec, rows: int = 3, length: int = 10) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, spec.vocab, (rows, length), generator=draw)
    tokens[:, -4:] = spec.mask_id
    return tokens


def _adapter_laws(who: str, adapter: ModelAdapter, tolerance: float) -> None:
    spec, tokens = adapter.spec, _tokens(adapter.spec)
    rows, length = tokens.shape
    positions = torch.arange(length).expand(rows, -1)
    hidden = pure(f"{who}: embed", lambda view: adapter.embed(*view))((tokens,))
    tensor_law(who, "the embedding", hidden, (rows, length, spec.hidden), adapter.dtype)
    places = pure(f"{who}: encode", lambda view: adapter.encode(*view))((positions,))
    made = pure(f"{who}: project", lambda view: adapter.project(0, *view))((hidden, places))
    tensor_law(who, "queries", made.queries, (rows, length, spec.n_heads, spec.head_dim), adapter.dtype)
    for what, x in (("keys", made.keys), ("values", made.values)):
        tensor_law(who, what, x, (rows, length, spec.n_kv_heads, spec.head_dim), adapter.dtype)
    order = torch.tensor([7, 2, 5])
    part = adapter.project(0, hidden[:, order], adapter.encode(positions[:, order]))
    expected = tuple(x[:, order] for x in made)
    law(
        close(tuple(part), expected, tolerance),
        f"{who}: projecting some positions gives {numbers(part.queries)}, not what projecting all gives them; query, key "
        "and value follow from a position's own hidden state and its position",
    )
    read = adapter.project(0, hidden, adapter.encode(positions), order)
    law(
        close((read.queries, *read[1:]), (made.queries[:, order], *made[1:]), tolerance),
        f"{who}: with readers {order.tolist()} the queries are not theirs, or keys and values are not those of all",
    )
    mixed = pure(f"{who}: mix", lambda view: adapter.mix(0, *view))((hidden, made.queries))
    tensor_law(who, "a layer's output", mixed, hidden.shape, adapter.dtype)
    logits = pure(f"{who}: logits", lambda view: adapter.logits(*view))((hidden,))
    tensor_law(who, "logits", logits, (rows, length, spec.vocab), logits.dtype)
    whole = full_logits(adapter, tokens)
    law(bool(whole.isfinite().all()), f"{who} gives logits that are no numbers: {numbers(whole)}")
    law(
        close(full_logits(adapter, tokens[1:2]), whole[1:2], tolerance),
        f"{who}: the logits of a row alone are not those of the row in its batch",
    )


def _meta_laws(who: str, family: ModelFamily, config: Mapping[str, Any]) -> None:
    """A family that draws random weights reads nothing from the device."""
    adapter = family.load(Path(), config, LoadPlan(torch.float32, torch.device("meta"), seed=0))
    try:
        full_logits(adapter, _tokens(adapter.spec).to("meta"))
    except Exception as error:
        raise AssertionError(
            f"{who} reads the device: on the meta device it raised {type(error).__name__}: {error}"
        ) from error


def _decoding_laws(who: str, adapter: ModelAdapter, reference: Callable[[Tensor], Tensor], tolerance: float) -> None:
    """The plain pass gives the reference's logits, and vanilla decoding what decoding with these by hand gives."""
    tokens = _tokens(adapter.spec)
    found, expected = full_logits(adapter, tokens).float(), reference(tokens).float()
    law(
        found.shape == expected.shape, f"{who}: logits of {tuple(found.shape)}, the reference's {tuple(expected.shape)}"
    )
    off = float((found - expected).abs().max())
    law(off <= tolerance, f"{who}: logits are off by {off:.3g} from the reference's, more than {tolerance}")
    catalogue, model = Catalogue.load(), Model(adapter)
    settings = {**SHORT, "refresh": "every-step", "skip": "none", "delay_eos": False}
    engine = Engine.build(model, catalogue.configure("vanilla", settings=settings), catalogue)
    attention = adapter.spec.attention
    if attention is not None and (attention.write_size != attention.size or attention.whole_prompt):
        return  # no one pass gives what its steps compute
    row = prompts(model, (9 if attention is None else attention.size * -(-9 // attention.size),))
    decoded = engine.generate(row).tokens
    by_hand = _by_hand(adapter.spec, reference, row[0])
    law(
        torch.equal(decoded[0, : len(by_hand)], by_hand),
        f"{who}: vanilla decoding gives {decoded[0].tolist()}, and by hand with the reference {by_hand.tolist()}",
    )


def _by_hand(spec: ModelSpec, reference: Callable[[Tensor], Tensor], prompt: list[int]) -> Tensor:
    """Return the canvas (L,) decoded block by block, at each step the one most confident candidate (LLaDA's sampling).

    Of a block-causal model it ends where the answer's last whole block does; before each block its first token, if it is led.
    """
    length, block, attention = SHORT["gen_length"], SHORT["block_length"], spec.attention
    if attention is not None:
        block = min(block, attention.size)
        length = max(attention.size, length // attention.size * attention.size)
    canvas = torch.tensor(prompt + [spec.mask_id] * length)
    undecided = torch.arange(len(canvas)) >= len(prompt)
    for start in range(len(prompt), len(canvas), block):
        columns = range(start, min(start + block, len(canvas)))
        if attention is not None and attention.leads and start % attention.size == 0:
            canvas[start] = _candidates(reference(canvas[None, :start])[0, -1], spec)[1]
            undecided[start] = False
        while undecided[list(columns)].any():
            confidence, tokens = _candidates(reference(canvas.unsqueeze(0))[0], spec)
            at = max((c for c in columns if undecided[c]), key=lambda c: float(confidence[c - spec.logit_shift]))
            canvas[at] = tokens[at - spec.logit_shift]
            undecided[at] = False
    return canvas


def _candidates(logits: Tensor, spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """Return the probability and the token of the likeliest candidates, of which the mask is none."""
    chances = logits.float().softmax(-1)
    chances[..., spec.mask_id] = 0
    confidence, tokens = chances.max(-1)
    return confidence, tokens
