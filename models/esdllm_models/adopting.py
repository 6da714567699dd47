"""Taking over the weights of a module that somebody else loaded: its own tensors are computed with, none is copied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from esdllm import CheckpointError, ModelAdapter, ModelSpec, UnavailableError
from esdllm_models.building import Names, made_of
from esdllm_models.linear import Dense, Linear, Split
from esdllm_models.spread import Spread
from esdllm_models.transformer import Geometry, Transformer

__all__ = ["adopt"]


def adopt(spec: ModelSpec, geometry: Geometry, names: Names, module: nn.Module) -> ModelAdapter:
    """Return a model over a module's weights, found by the names that a checkpoint has for them.

    A plain `nn.Linear` gives its tensors; any other module in its place (a quantised one, one with a LoRA beside it, one with
    hooks) is called. What is changed in place later is seen, what is put in a tensor's place is not.

    Raises:
        CheckpointError: a module is missing, or a weight has another shape than the config says.
        UnavailableError: the embedding or a norm is not a plain one, or weights are not there yet (on `meta`).
    """
    heads, kv_heads = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    found = _Found(module, names)

    def split(layer: int, **sizes: int) -> Split:
        parts = tuple(found.linear(layer, name, size, spec.hidden) for name, size in sizes.items())
        return Split(parts, tuple(sizes.values()))

    layers = tuple(
        made_of(
            spec,
            attn_norm=found.tensor(layer, "attn_norm", spec.hidden),
            qkv=split(layer, q=heads, k=kv_heads, v=kv_heads),
            out=found.linear(layer, "out", spec.hidden, heads),
            mlp_norm=found.tensor(layer, "mlp_norm", spec.hidden),
            gate_up=split(layer, gate=spec.intermediate, up=spec.intermediate),
            down=found.linear(layer, "down", spec.hidden, spec.intermediate),
        )
        for layer in range(spec.n_layers)
    )
    embedding = found.tensor(None, "embedding", spec.vocab, spec.hidden)
    norm = found.tensor(None, "norm", spec.hidden)
    whole = Transformer(spec, geometry, embedding, layers, norm, found.linear(None, "head", spec.vocab, spec.hidden))
    devices = tuple(layer.attn_norm.device for layer in layers)
    alone = {embedding.device, norm.device, *devices} == {embedding.device}
    return whole if alone else Spread(whole, embedding.device, devices, norm.device)


class _Found:
    """The parts of a module, by our names."""

    def __init__(self, module: nn.Module, names: Names) -> None:
        self._module, self._names = module, names

    def part(self, layer: int | None, name: str) -> tuple[str, Any]:
        path = self._names.of(layer, name).rpartition(".")[0]
        try:
            return path, self._module.get_submodule(path)
        except AttributeError as error:
            raise CheckpointError(
                f"the {type(self._module).__name__} has no module '{path}'; pass the model with its head, unwrapped"
            ) from error

    def tensor(self, layer: int | None, name: str, *shape: int) -> Tensor:
        path, part = self.part(layer, name)
        weight = getattr(part, "weight", None)
        if not isinstance(weight, Tensor) or not weight.is_floating_point() or _hooked(part):
            raise UnavailableError(f"'{path}' is a {type(part).__name__} whose weight cannot be taken over as it is")
        return _checked(f"{path}.weight", weight, shape)

    def linear(self, layer: int | None, name: str, outputs: int, inputs: int) -> Linear:
        path, part = self.part(layer, name)
        if type(part) is not nn.Linear or _hooked(part):
            called: Linear = part
            return called
        _checked(f"{path}.weight", part.weight, (outputs, inputs))
        return Dense(part.weight, part.bias)


def _hooked(part: nn.Module) -> bool:
    """Return whether calling a module does more than its class says, as it does where weights are fetched when needed."""
    return bool(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part))


def _checked(name: str, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(weight.shape) != shape:
        raise CheckpointError(f"'{name}' has the shape {tuple(weight.shape)}, but the config says {shape}")
    if weight.device == torch.device("meta"):
        raise UnavailableError(f"'{name}' holds no values (it is on the device meta); load the module with its weights")
    return weight
