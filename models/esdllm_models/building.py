"""Building a decoder by a plan, layer by layer: a layer's weights are filled and quantised, and the next's take their place.

So the most memory that loading takes is the finished model's and one layer's in full; or what the embedding takes and the head
twice, full and quantised or packed, where the layers are smaller than the head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esdllm import ComputeChoice, LoadPlan, ModelAdapter, ModelSpec, UnavailableError
from esdllm.checkpoints.weights import Checkpoint
from esdllm_models.blueprint import Blueprint
from esdllm_models.decoder import Layer, Transformer
from esdllm_models.drawing import Fill, drawing
from esdllm_models.feedforward import Experts, Mlp, Router
from esdllm_models.grouped import Stacked
from esdllm_models.linear import Dense, Linear, Split, sliced
from esdllm_models.linear.choosing import choose
from esdllm_models.linear.kernels import Kernel, kernel
from esdllm_models.linear.pieces import Pieces
from esdllm_models.linear.timing import Matrix
from esdllm_models.spread import Spread

__all__ = ["choose_compute", "hidden_dtype", "load", "made_of", "problems", "weight_bytes"]

_Shape = tuple[int, ...]


def load(blueprint: Blueprint, folder: Path, plan: LoadPlan) -> ModelAdapter:
    """Return the model of a plan, with a folder's weights or random ones.

    Raises:
        UnavailableError: the plan cannot be followed on this machine or with this model; gives all reasons.
        CheckpointError: the folder's weights are not the model's.
    """
    if reasons := problems(blueprint, plan):
        asked = f"quantisation '{plan.quantize}'" if plan.quantize else f"compute '{plan.compute}'"
        raise UnavailableError(f"{asked} cannot serve here: {'; '.join(reasons)}")
    if plan.seed is not None:
        return _Building(blueprint, plan, drawing(plan.seed, blueprint.names.tied)).whole()
    names = blueprint.names
    weights = Checkpoint(folder, blueprint.shapes(), names.unread, plan.lora, blueprint.sizes.layers)

    def fill(layer: int | None, slots: Mapping[str, Tensor]) -> None:
        for name, slot in slots.items():
            weights.read(names.of(layer, name), slot)

    return _Building(blueprint, plan, fill).whole()


def problems(blueprint: Blueprint, plan: LoadPlan) -> list[str]:
    """Return why the weights cannot be held as a plan says, on its devices; empty if they can."""
    chosen, spec = _kernel(plan), blueprint.spec
    reasons = list(dict.fromkeys(reason for device in plan.devices for reason in chosen.problems(device, plan.dtype)))
    every = {name: shape for layer in range(spec.n_layers) for name, shape in _matrices(spec, layer).items()}
    reasons += [
        f"the weight '{name}' has {inputs} inputs, which do not divide by {chosen.group}"
        for name, (*_, inputs) in {**every, "head": (spec.vocab, spec.hidden)}.items()
        if inputs % chosen.group
    ]
    return reasons


def weight_bytes(blueprint: Blueprint, plan: LoadPlan) -> int:
    """Return what the weights of a plan take, on all devices together."""
    spec, size, chosen = blueprint.spec, plan.dtype.itemsize, _kernel(plan)
    held = (spec.vocab * size + hidden_dtype(plan).itemsize) * spec.hidden
    if not _shares_head(blueprint, plan):
        held += chosen.bytes(spec.vocab, spec.hidden, size)
    for layer in range(spec.n_layers):
        for shape in _matrices(spec, layer).values():
            outputs, inputs = shape[-2:]
            held += (
                chosen.bytes(outputs, inputs, size)
                if len(shape) == 2
                else shape[0] * chosen.part(outputs, inputs, size)
            )
        for name, shape in _others(blueprint, layer).items():
            held += prod(shape) * _dtype(name, plan).itemsize
    return held


def _shares_head(blueprint: Blueprint, plan: LoadPlan) -> bool:
    """Return whether the head computes with the embedding's memory."""
    together = (plan.head or plan.device) == plan.device
    return blueprint.names.tied and together and _kernel(plan).keeps(plan.device, plan.dtype)


def choose_compute(blueprint: Blueprint, plan: LoadPlan, measure: bool) -> ComputeChoice:
    """Return which kernel of linear layers a plan takes that names none; see `choosing`."""
    spec = blueprint.spec
    shapes = Counter(shape for layer in range(spec.n_layers) for shape in _matrices(spec, layer).values())
    chosen = spec.experts.chosen if spec.experts is not None else 0
    matrices = [Matrix(spec.vocab, spec.hidden, 1, few_rows=True)]
    for (*many, outputs, inputs), times in shapes.items():
        matrices.append(Matrix(outputs, inputs, times * (chosen if many else 1), expert=bool(many)))
    size = spec.vocab * spec.hidden + sum(prod(shape) * times for shape, times in shapes.items())
    return choose(matrices, size, plan, measure)


def hidden_dtype(plan: LoadPlan) -> torch.dtype:
    """Return the dtype of the hidden states, norms and biases."""
    return _kernel(plan).hidden(plan.dtype)


def _kernel(plan: LoadPlan) -> Kernel:
    return kernel(plan.quantize or plan.compute)


def made_of(
    spec: ModelSpec,
    attn_norm: Tensor,
    qkv: Linear,
    out: Linear,
    mlp_norm: Tensor,
    mlp: Mlp | Experts,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
) -> Layer:
    """Return a layer of its weights."""
    queries, joint = spec.n_heads * spec.head_dim, (spec.n_heads + 2 * spec.n_kv_heads) * spec.head_dim
    q, kv = sliced(qkv, 0, queries), sliced(qkv, queries, joint)
    return Layer(attn_norm, qkv, q, kv, out, mlp_norm, mlp, q_norm, k_norm)


def _matrices(spec: ModelSpec, layer: int) -> dict[str, _Shape]:
    """Return the shapes (O, I) of a layer's matrices, and (E, O, I) of its experts'."""
    joint, attended = (spec.n_heads + 2 * spec.n_kv_heads) * spec.head_dim, spec.n_heads * spec.head_dim
    found: dict[str, _Shape] = {"qkv": (joint, spec.hidden), "out": (spec.hidden, attended)}
    if not spec.routes(layer) or spec.experts is None:
        return {**found, "gate_up": (2 * spec.intermediate, spec.hidden), "down": (spec.hidden, spec.intermediate)}
    count, inside, shared = spec.experts.experts, spec.experts.intermediate, spec.experts.shared
    found |= {"experts.gate_up": (count, 2 * inside, spec.hidden), "experts.down": (count, spec.hidden, inside)}
    if shared:
        found |= {"shared_gate_up": (2 * shared, spec.hidden), "shared_down": (spec.hidden, shared)}
    return found


def _others(blueprint: Blueprint, layer: int) -> dict[str, _Shape]:
    """Return the shapes of what a layer has beside its matrices, and is never quantised: norms, biases, the router."""
    spec, geometry = blueprint.spec, blueprint.geometry
    found: dict[str, _Shape] = {"attn_norm": (spec.hidden,), "mlp_norm": (spec.hidden,)}
    if geometry.qk_norm:
        found |= {"q_norm": (spec.head_dim,), "k_norm": (spec.head_dim,)}
    if geometry.qkv_bias:
        found["qkv_bias"] = ((spec.n_heads + 2 * spec.n_kv_heads) * spec.head_dim,)
    if geometry.out_bias:
        found["out_bias"] = (spec.hidden,)
    if spec.experts is not None and spec.routes(layer):
        found["router"] = (spec.experts.experts, spec.hidden)
        if geometry.routing is not None and geometry.routing.bias != "none":
            found["router_bias"] = (spec.experts.experts,)
    elif geometry.mlp_bias:
        found |= {"gate_up_bias": (2 * spec.intermediate,), "down_bias": (spec.hidden,)}
    return found


def _dtype(name: str, plan: LoadPlan) -> torch.dtype:
    return torch.float32 if name.startswith("router") else hidden_dtype(plan)


def _slots(blueprint: Blueprint, full: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return where a layer's weights go, by the names of a blueprint, in matrices and others in full."""
    spec, found = blueprint.spec, dict[str, Tensor]()
    heads = [spec.n_heads * spec.head_dim, *[spec.n_kv_heads * spec.head_dim] * 2]
    for name, whole in full.items():
        base, bias = name.removesuffix("_bias"), "_bias" if name.endswith("_bias") else ""
        if base == "qkv" and "qkv" not in blueprint.names.inner:
            found |= zip((f"q{bias}", f"k{bias}", f"v{bias}"), whole.split(heads), strict=True)
        elif base.endswith("gate_up"):
            prefix = base.removesuffix("gate_up")
            for own, part in zip(("gate", "up"), whole.chunk(2, dim=whole.dim() - 2 if not bias else 0), strict=True):
                found |= _by_expert(prefix, own, part) if prefix == "experts." else {f"{prefix}{own}{bias}": part}
        elif base == "experts.down":
            found |= _by_expert("experts.", "down", whole)
        else:
            found[name] = whole
    return found


def _by_expert(prefix: str, name: str, whole: Tensor) -> dict[str, Tensor]:
    return {f"{prefix}{number}.{name}": own for number, own in enumerate(whole)}


class _Building:
    """A model being built."""

    def __init__(self, blueprint: Blueprint, plan: LoadPlan, fill: Fill) -> None:
        self._blueprint, self._plan, self._fill = blueprint, plan, fill
        self._room: dict[tuple[torch.device, str], Tensor] = {}
        """where matrices stand in full until they are quantised or packed, by device and name; freed each time, it left holes"""
        self._last = {
            (plan.layer(layer), name): layer
            for layer in range(blueprint.spec.n_layers)
            for name in _matrices(blueprint.spec, layer)
        }
        """the last layer that needs it"""

    def whole(self) -> ModelAdapter:
        spec, plan = self._blueprint.spec, self._plan
        head_device, make = plan.head or plan.device, _kernel(plan).make
        with torch.no_grad():
            embedding = torch.empty(spec.vocab, spec.hidden, device=plan.device, dtype=plan.dtype)
            norm = torch.empty(spec.hidden, device=head_device, dtype=hidden_dtype(plan))
            if self._blueprint.names.tied:
                self._fill(None, {"embedding": embedding, "norm": norm})
                full = embedding.to(head_device)  # itself, where both are in one place
            else:
                full = torch.empty(spec.vocab, spec.hidden, device=head_device, dtype=plan.dtype)
                self._fill(None, {"embedding": embedding, "norm": norm, "head": full})
            head = make(full, None)
            del full  # before the layers come
            layers = tuple(self._layer(number) for number in range(spec.n_layers))
        whole = Transformer(spec, self._blueprint.geometry, embedding, layers, norm, head)
        if len(plan.devices) == 1:
            return whole
        return Spread(whole, plan.device, tuple(plan.layer(number) for number in range(spec.n_layers)), head_device)

    def _layer(self, number: int) -> Layer:
        """Return one layer, filled and then quantised, one matrix after the other."""
        spec, plan = self._blueprint.spec, self._plan
        device = plan.layer(number)
        full = {name: self._empty(device, name, shape) for name, shape in _matrices(spec, number).items()}
        others = {
            name: torch.empty(shape, device=device, dtype=_dtype(name, plan))
            for name, shape in _others(self._blueprint, number).items()
        }
        self._fill(number, _slots(self._blueprint, {**full, **others}))

        def made(name: str) -> Any:
            weight = full.pop(name)
            found = self._made(number, name, weight, others.get(f"{name}_bias"))
            if not _keeps(found) and self._last[device, name] > number:
                self._room[device, name] = weight
            return found

        qkv, out = made("qkv"), made("out")
        if "router" in others:
            assert self._blueprint.geometry.routing is not None  # so that the spec has experts
            router = Router(self._blueprint.geometry.routing, others["router"], others.get("router_bias"))
            experts = made("experts.gate_up"), made("experts.down")
            shared = Mlp(made("shared_gate_up"), made("shared_down")) if "shared_down" in full else None
            mlp: Mlp | Experts = Experts(router, *experts, shared)
        else:
            mlp = Mlp(made("gate_up"), made("down"))
        norms = {name: others.get(name) for name in ("q_norm", "k_norm")}
        return made_of(spec, others["attn_norm"], qkv, out, others["mlp_norm"], mlp, **norms)

    def _empty(self, device: torch.device, name: str, shape: _Shape) -> Tensor:
        held = self._room.pop((device, name), None)
        return torch.empty(shape, device=device, dtype=self._plan.dtype) if held is None else held

    def _made(self, layer: int, name: str, weight: Tensor, bias: Tensor | None) -> Linear | Stacked:
        """Return the layer of a weight; for the last layer's queries, keys and values, two side by side.

        The last layer's are computed apart at a refresh, and what is quantised or packed cannot be sliced once it is made.
        """
        plan, spec, chosen = self._plan, self._blueprint.spec, _kernel(self._plan)
        if weight.dim() == 3:
            return Stacked.of(weight, plan.quantize or (plan.compute if chosen.widens else None))
        make = chosen.make
        whole = make(weight, bias)
        if name != "qkv" or layer < spec.n_layers - 1 or isinstance(whole, (Dense, Pieces)):
            return whole
        del whole
        queries = spec.n_heads * spec.head_dim
        sizes = (queries, len(weight) - queries)
        biases = (None, None) if bias is None else bias.split(sizes)
        return Split(tuple(make(part, own) for part, own in zip(weight.split(sizes), biases, strict=True)), sizes)


def _keeps(made: Linear | Stacked) -> bool:
    """Return whether it computes with the weight that it was made of."""
    return isinstance(made, (Dense, Pieces)) or (isinstance(made, Stacked) and not made.kind)
