"""Building a transformer by a plan, layer by layer: a layer's weights are filled and quantised, and the next's take their place.

So the most memory that loading takes is the finished model's and one layer's in full; or what the embedding takes and the head
twice, full and quantised or packed, where the layers are smaller than the head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import attrs
import torch
from torch import Tensor

from esdllm import LoadPlan, ModelAdapter, ModelSpec, UnavailableError
from esdllm.checkpoints.weights import Checkpoint, Shape, Stated
from esdllm_models.linear import Dense, Linear, Split, sliced
from esdllm_models.quantized import quantizer
from esdllm_models.spread import Spread
from esdllm_models.transformer import Geometry, Layer, Transformer

__all__ = ["Names", "Sizes", "load", "made_of", "problems", "weight_bytes"]


@attrs.frozen
class Names:
    """What a family's checkpoints call the weights."""

    outer: Mapping[str, str]
    """by our names embedding, norm, head"""
    layer: str
    """how the names of a layer begin, with {} for its number"""
    inner: Mapping[str, str]
    """by our names attn_norm, q, k, v, out, mlp_norm, gate, up, down, and q_bias, k_bias, v_bias if there are any: the rest"""

    unread: tuple[str, ...] = ()
    """what may be there and is not read"""

    def of(self, layer: int | None, name: str) -> str:
        """Return the checkpoint's name of one of our weights; `layer` is None for the outer ones."""
        return self.outer[name] if layer is None else self.layer.format(layer) + self.inner[name]

    def shapes(self, sizes: Sizes) -> dict[str, Shape]:
        """Return the shapes of all weights, by the checkpoint's names."""
        by, layers = sizes.shapes(), range(sizes.layers.value)
        outer: dict[str, Shape] = {self.of(None, name): by[name] for name in self.outer}
        return outer | {self.of(layer, name): by[name] for layer in layers for name in self.inner}

    def tied(self) -> Names:
        """Return the names where the head is the embedding."""
        return attrs.evolve(self, outer={**self.outer, "head": self.outer["embedding"]}, unread=(self.outer["head"],))


@attrs.frozen
class Sizes:
    """The sizes of a family's weights, as config.json states them."""

    layers: Stated
    hidden: Stated
    queries: Stated
    """features of all heads"""
    keys: Stated
    """features of all key-value heads"""
    vocab: Stated
    intermediate: Stated

    def shapes(self) -> dict[str, tuple[Stated, ...]]:
        """Return the shapes of weights, by our names."""
        hidden, queries, keys, inner = self.hidden, self.queries, self.keys, self.intermediate
        words, gate = (self.vocab, hidden), (inner, hidden)
        return {
            "embedding": words,
            "head": words,
            "norm": (hidden,),
            "attn_norm": (hidden,),
            "mlp_norm": (hidden,),
            "q": (queries, hidden),
            "k": (keys, hidden),
            "v": (keys, hidden),
            "out": (hidden, queries),
            "q_bias": (queries,),
            "k_bias": (keys,),
            "v_bias": (keys,),
            "gate": gate,
            "up": gate,
            "down": (hidden, inner),
        }


_Make = Callable[[Tensor, Tensor | None], Linear]
_Room = dict[tuple[torch.device, str], Tensor]
"""where matrices stand in full until they are quantised or packed, by device and name; freed with each layer, it left holes"""


class _Fill(Protocol):
    def __call__(self, layer: int | None, slots: Mapping[str, Tensor]) -> None:
        """Write weights into place, by our names; `layer` is None for the outer ones."""
        ...


def load(spec: ModelSpec, geometry: Geometry, names: Names, sizes: Sizes, folder: Path, plan: LoadPlan) -> ModelAdapter:
    """Return the model of a plan, with a folder's weights or random ones.

    Raises:
        UnavailableError: the plan cannot be followed on this machine or with this model; gives all reasons.
        CheckpointError: the folder's weights are not the model's.
    """
    if reasons := problems(spec, plan):
        raise UnavailableError(f"quantisation '{plan.quantize}' cannot serve here: {'; '.join(reasons)}")
    if plan.seed is not None:
        return _build(spec, geometry, plan, _drawing(plan.seed))
    weights = Checkpoint(folder, names.shapes(sizes), names.unread, plan.lora, sizes.layers)

    def fill(layer: int | None, slots: Mapping[str, Tensor]) -> None:
        for name, slot in slots.items():
            weights.read(names.of(layer, name), slot)

    return _build(spec, geometry, plan, fill)


def problems(spec: ModelSpec, plan: LoadPlan) -> list[str]:
    """Return why the weights cannot be held as a plan says, on its devices; empty if they can."""
    chosen = quantizer(plan.quantize)
    reasons = list(dict.fromkeys(reason for device in plan.devices for reason in chosen.problems(device, plan.dtype)))
    reasons += [
        f"the weight '{name}' has {inputs} inputs, which do not divide by {chosen.group}"
        for name, (_, inputs) in _shapes(spec).items()
        if inputs % chosen.group
    ]
    return reasons


def weight_bytes(spec: ModelSpec, geometry: Geometry, plan: LoadPlan) -> int:
    """Return what the weights of a plan take, on all devices together."""
    size, held = plan.dtype.itemsize, quantizer(plan.quantize).bytes
    shapes = _shapes(spec)
    biases = shapes["qkv"][0] if geometry.qkv_bias else 0
    layer = sum(held(*shapes[name], size) for name in ("qkv", "out", "gate_up", "down"))
    kept = spec.n_layers * (2 * spec.hidden + biases) + spec.hidden + spec.vocab * spec.hidden
    return spec.n_layers * layer + held(*shapes["head"], size) + kept * size


def made_of(
    spec: ModelSpec, attn_norm: Tensor, qkv: Linear, out: Linear, mlp_norm: Tensor, gate_up: Linear, down: Linear
) -> Layer:
    """Return a layer of its weights."""
    queries, joint = spec.n_heads * spec.head_dim, (spec.n_heads + 2 * spec.n_kv_heads) * spec.head_dim
    return Layer(
        attn_norm=attn_norm,
        qkv=qkv,
        q=sliced(qkv, 0, queries),
        kv=sliced(qkv, queries, joint),
        out=out,
        mlp_norm=mlp_norm,
        gate_up=gate_up,
        down=down,
    )


def _shapes(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """Return outputs and inputs of the linear layers."""
    joint, attended = (spec.n_heads + 2 * spec.n_kv_heads) * spec.head_dim, spec.n_heads * spec.head_dim
    return {
        "qkv": (joint, spec.hidden),
        "out": (spec.hidden, attended),
        "gate_up": (2 * spec.intermediate, spec.hidden),
        "down": (spec.hidden, spec.intermediate),
        "head": (spec.vocab, spec.hidden),
    }


def _build(spec: ModelSpec, geometry: Geometry, plan: LoadPlan, fill: _Fill) -> ModelAdapter:
    """Return the model of a plan, its weights written by `fill`."""
    head_device = plan.head or plan.device
    with torch.no_grad():
        embedding = torch.empty(spec.vocab, spec.hidden, device=plan.device, dtype=plan.dtype)
        norm = torch.empty(spec.hidden, device=head_device, dtype=plan.dtype)
        full = torch.empty(spec.vocab, spec.hidden, device=head_device, dtype=plan.dtype)
        fill(None, {"embedding": embedding, "norm": norm, "head": full})
        head = quantizer(plan.quantize).make(full, None)
        del full  # before the layers come
        room: _Room = {}
        layers = tuple(_layer(spec, geometry, plan, number, fill, room) for number in range(spec.n_layers))
    whole = Transformer(spec, geometry, embedding, layers, norm, head)
    if len(plan.devices) == 1:
        return whole
    return Spread(whole, plan.device, tuple(plan.layer(number) for number in range(spec.n_layers)), head_device)


def _layer(spec: ModelSpec, geometry: Geometry, plan: LoadPlan, number: int, fill: _Fill, room: _Room) -> Layer:
    """Return one layer, filled and then quantised, one matrix after the other."""
    device, make, shapes = plan.layer(number), quantizer(plan.quantize).make, _shapes(spec)
    last = number == spec.n_layers - 1

    def empty(*size: int) -> Tensor:
        return torch.empty(*size, device=device, dtype=plan.dtype)

    names = ("qkv", "out", "gate_up", "down")
    full = {name: room.pop((device, name)) if (device, name) in room else empty(*shapes[name]) for name in names}
    norms = {name: empty(spec.hidden) for name in ("attn_norm", "mlp_norm")}
    sizes = [spec.n_heads * spec.head_dim, *[spec.n_kv_heads * spec.head_dim] * 2]
    slots = {**norms, "out": full["out"], "down": full["down"]}
    slots.update(zip(("q", "k", "v"), full["qkv"].split(sizes), strict=True))
    slots.update(zip(("gate", "up"), full["gate_up"].chunk(2), strict=True))
    bias = empty(sum(sizes)) if geometry.qkv_bias else None
    if bias is not None:
        slots.update(zip(("q_bias", "k_bias", "v_bias"), bias.split(sizes), strict=True))
    fill(number, slots)
    slots.clear()  # which holds what `made` is to free

    def made(name: str, bias: Tensor | None = None) -> Linear:
        weight = full.pop(name)
        found = _joint(make, weight, bias, sizes[0] if last and name == "qkv" else None)
        if not last and not isinstance(found, Dense):  # which keeps it
            room[device, name] = weight
        return found

    return made_of(
        spec,
        attn_norm=norms["attn_norm"],
        qkv=made("qkv", bias),
        out=made("out"),
        mlp_norm=norms["mlp_norm"],
        gate_up=made("gate_up"),
        down=made("down"),
    )


def _joint(make: _Make, weight: Tensor, bias: Tensor | None, queries: int | None) -> Linear:
    """Return the layer of queries, keys and values; two side by side if `queries` tells where to part them.

    The last layer's are computed apart at a refresh, and what is quantised or packed cannot be sliced once it is made.
    """
    whole = make(weight, bias)
    if queries is None or isinstance(whole, Dense):
        return whole
    del whole
    sizes = (queries, len(weight) - queries)
    biases = (None, None) if bias is None else bias.split(sizes)
    return Split(tuple(make(part, own) for part, own in zip(weight.split(sizes), biases, strict=True)), sizes)


def _drawing(seed: int) -> _Fill:
    """Return what draws weights that keep the hidden states of one size: norms 1, the others even around 0."""

    def fill(layer: int | None, slots: Mapping[str, Tensor]) -> None:
        for name, slot in slots.items():
            if name.endswith("norm"):
                slot.fill_(1)
                continue
            if slot.is_meta:  # which has no numbers to draw
                continue
            width = 1.0 if name == "embedding" else (3 / slot.shape[-1]) ** 0.5
            drawn = sha256(f"{seed} {layer} {name}".encode()).digest()
            generator = torch.Generator(slot.device).manual_seed(int.from_bytes(drawn[:4], "big"))
            slot.uniform_(-width, width, generator=generator)

    return fill
