"""Taking over the weights of a module that somebody else loaded: its own tensors are computed with, none is copied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from esdllm import CheckpointError, ModelAdapter, UnavailableError
from esdllm_models.blueprint import Blueprint, Names
from esdllm_models.building import made_of
from esdllm_models.decoder import Layer, Transformer
from esdllm_models.feedforward import Mlp
from esdllm_models.inspecting import check_called, check_dtype, check_embedding, check_norm, check_rest, hooked
from esdllm_models.linear import Dense, Linear, Split
from esdllm_models.spread import Spread

__all__ = ["adopt"]


def adopt(blueprint: Blueprint, module: nn.Module) -> ModelAdapter:
    """Return a model over a module's weights, found by the names that a checkpoint has for them.

    A plain `nn.Linear` gives its tensors; any other module in its place (a quantised one, one with a LoRA beside it, one with
    hooks) is called. What is changed in place later is seen, what is put in a tensor's place is not. What the module does
    beside that is looked for, and refused. Where the head is tied, a module without one has the embedding for it.

    Raises:
        CheckpointError: a module is missing, or a weight has another shape than the config says.
        UnavailableError: the embedding or a norm is not a plain one, weights are of several dtypes or not there yet (on
            `meta`), or the module has hooks, parameters or dropout that would be left out.
    """
    spec, geometry, names = blueprint.spec, blueprint.geometry, blueprint.names
    if spec.experts is not None:
        raise UnavailableError(
            f"the experts' weights of a {type(module).__name__} lie apart, and cannot be computed with side by side without a "
            "copy; save the module with save_pretrained(), and load its folder"
        )
    found = _Found(module, names)
    embedding = found.embedding(spec.vocab, spec.hidden)
    layers = tuple(_layer(blueprint, found, number) for number in range(spec.n_layers))
    norm = found.norm(None, "norm", spec.hidden, geometry.norm_eps)
    alone = names.tied and not found.has(None, "head")
    head = Dense(embedding) if alone else found.linear(None, "head", spec.vocab, spec.hidden)
    check_rest(module, spec, geometry, found.taken, found.called)
    whole = Transformer(spec, geometry, embedding, layers, norm, head)
    devices = tuple(layer.attn_norm.device for layer in layers)
    together = {embedding.device, norm.device, *devices} == {embedding.device}
    return whole if together else Spread(whole, embedding.device, devices, norm.device)


def _layer(blueprint: Blueprint, found: _Found, number: int) -> Layer:
    spec, geometry = blueprint.spec, blueprint.geometry
    heads, kv_heads, dim = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim, spec.head_dim

    def linear(name: str, outputs: int, inputs: int = spec.hidden) -> Linear:
        return found.linear(number, name, outputs, inputs)

    def norm(name: str, size: int = spec.hidden) -> Tensor:
        return found.norm(number, name, size, geometry.norm_eps)

    def split(**sizes: int) -> Split:
        return Split(tuple(linear(name, size) for name, size in sizes.items()), tuple(sizes.values()))

    joint = "qkv" in blueprint.names.inner
    return made_of(
        spec,
        attn_norm=norm("attn_norm"),
        qkv=linear("qkv", heads + 2 * kv_heads) if joint else split(q=heads, k=kv_heads, v=kv_heads),
        out=linear("out", spec.hidden, heads),
        mlp_norm=norm("mlp_norm"),
        mlp=Mlp(split(gate=spec.intermediate, up=spec.intermediate), linear("down", spec.hidden, spec.intermediate)),
        q_norm=norm("q_norm", dim) if geometry.qk_norm else None,
        k_norm=norm("k_norm", dim) if geometry.qk_norm else None,
    )


class _Found:
    """The parts of a module, by our names."""

    def __init__(self, module: nn.Module, names: Names) -> None:
        self._module, self._names = module, names
        self._dtype = torch.float32
        self.taken: set[int] = set()
        """ids of the parameters that are computed with"""
        self.called: set[str] = set()
        """paths of the parts that are called"""

    def has(self, layer: int | None, name: str) -> bool:
        path = self._names.module(layer, name)
        return any(path == held for held, _ in self._module.named_modules(remove_duplicate=False))

    def part(self, layer: int | None, name: str) -> tuple[str, Any]:
        path = self._names.module(layer, name)
        try:
            return path, self._module.get_submodule(path)
        except AttributeError as error:
            raise CheckpointError(
                f"the {type(self._module).__name__} has no module '{path}'; pass the model with its head, unwrapped"
            ) from error

    def embedding(self, *shape: int) -> Tensor:
        path, part, weight = self._weight(None, "embedding", shape)
        self._dtype = weight.dtype
        check_embedding(path, part, self._take(f"{path}.weight", weight))
        return weight

    def norm(self, layer: int | None, name: str, size: int, eps: float) -> Tensor:
        path, part, weight = self._weight(layer, name, (size,))
        check_norm(path, part, self._take(f"{path}.weight", weight), eps)
        return weight

    def _weight(self, layer: int | None, name: str, shape: tuple[int, ...]) -> tuple[str, nn.Module, Tensor]:
        path, part = self.part(layer, name)
        weight = getattr(part, "weight", None)
        if not isinstance(weight, Tensor) or not weight.is_floating_point() or hooked(part):
            raise UnavailableError(f"'{path}' is a {type(part).__name__} whose weight cannot be taken over as it is")
        return path, part, _checked(f"{path}.weight", weight, shape)

    def linear(self, layer: int | None, name: str, outputs: int, inputs: int) -> Linear:
        path, part = self.part(layer, name)
        if type(part) is not nn.Linear or hooked(part):
            self.called.add(path)
            device = next((x.device for x in part.parameters() if not x.is_meta), torch.device("cpu"))
            check_called(path, part, outputs, inputs, self._dtype, device)
            called: Linear = part
            return called
        _checked(f"{path}.weight", part.weight, (outputs, inputs))
        bias = None if part.bias is None else self._take(f"{path}.bias", part.bias)
        return Dense(self._take(f"{path}.weight", part.weight), bias)

    def _take(self, name: str, weight: Tensor) -> Tensor:
        check_dtype(name, weight, self._dtype)
        self.taken.add(id(weight))
        return weight


def _checked(name: str, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(weight.shape) != shape:
        raise CheckpointError(f"'{name}' has the shape {tuple(weight.shape)}, but the config says {shape}")
    if weight.device == torch.device("meta"):
        raise UnavailableError(f"'{name}' holds no values (it is on the device meta); load the module with its weights")
    return weight
