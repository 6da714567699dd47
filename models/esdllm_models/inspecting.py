"""Looking at a module whose weights are taken over: what it does beside its weights must be nothing, for it would be left out."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esdllm import CheckpointError, ModelSpec, UnavailableError
from esdllm_models.decoder import Geometry

__all__ = ["check_called", "check_dtype", "check_embedding", "check_norm", "check_rest", "hooked"]

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def hooked(part: nn.Module) -> bool:
    """Return whether calling a module does more than its class says, as it does where weights are fetched when needed."""
    return bool(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part))


def _plain(path: str, part: nn.Module) -> None:
    """Refuse a module in whose place more than a weight stands, such as an adapter's wrapper."""
    more = [name for name, _ in (*part.named_children(), *part.named_parameters()) if name != "weight"]
    if hooked(part) or more:
        what = f"it holds {', '.join(more)} too" if more else "it has hooks"
        raise UnavailableError(
            f"'{path}' is a {type(part).__name__} whose weight cannot be taken over as it is: {what}; merge what was trained "
            "beside the weights first (in PEFT, merge_and_unload)"
        )


def check_embedding(path: str, part: nn.Module, weight: Tensor) -> None:
    """Return if looking a token up in a module gives its row of the weight.

    Raises:
        UnavailableError: it gives something else, or may.
    """
    _plain(path, part)
    plain = isinstance(part, nn.Embedding) and part.max_norm is None
    if plain and type(part) is not nn.Embedding:
        with torch.no_grad():
            every = torch.arange(len(weight), device=weight.device).split(1024)
            plain = all(torch.equal(part(some), weight[some]) for some in every)
    if not plain:
        raise UnavailableError(
            f"'{path}' is a {type(part).__name__}, which gives something else than its weight's rows"
        )


def check_norm(path: str, part: nn.Module, weight: Tensor, eps: float) -> None:
    """Return if a module is the norm that the config tells of, tried out on a few numbers.

    Raises:
        UnavailableError: it computes something else than RMSNorm with its weight.
        CheckpointError: it has another epsilon than the config.
    """
    _plain(path, part)
    own = getattr(part, "variance_epsilon", getattr(part, "eps", None))
    if isinstance(own, float) and abs(own - eps) > 1e-3 * eps:
        raise CheckpointError(f"'{path}' has the epsilon {own}, but the config says {eps}")
    drawn = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    expected = F.rms_norm(drawn, weight.shape, weight, eps).float()
    found = _called(path, part, drawn, len(weight), weight.dtype).float()
    if not torch.allclose(found, expected, rtol=4 * torch.finfo(weight.dtype).eps + 1e-4, atol=1e-5):
        raise UnavailableError(f"'{path}' is a {type(part).__name__}, which computes something else than RMSNorm")


def check_called(
    path: str, part: nn.Module, outputs: int, inputs: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Return if a module in a linear layer's place maps features of the model's dtype to features of it.

    Raises:
        UnavailableError: it does not; says what it gives.
    """
    if type(part) is nn.Linear:  # with hooks, which count their calls perhaps
        check_dtype(f"{path}.weight", part.weight, dtype)
    else:
        _called(path, part, torch.full((1, 1, inputs), 0.1, dtype=dtype, device=device), outputs, dtype)


def _called(path: str, part: nn.Module, x: Tensor, outputs: int, dtype: torch.dtype) -> Tensor:
    try:
        with torch.no_grad():
            found = part(x)
    except Exception as error:  # whatever is in the place of a layer
        raise UnavailableError(
            f"'{path}' is a {type(part).__name__} that cannot be called with {_named(dtype)}: {str(error).splitlines()[0]:.200}"
        ) from error
    if not isinstance(found, Tensor) or found.shape != (*x.shape[:-1], outputs) or found.dtype != dtype:
        given = f"{tuple(found.shape)} {_named(found.dtype)}" if isinstance(found, Tensor) else type(found).__name__
        raise UnavailableError(
            f"'{path}' is a {type(part).__name__} that makes {given} of {tuple(x.shape)} {_named(dtype)}; cast the module to one "
            f"dtype, with module.to(torch.{_named(dtype)})"
        )
    return found


def check_dtype(name: str, weight: Tensor, dtype: torch.dtype) -> None:
    """Return if a weight is of the embedding's dtype.

    Raises:
        UnavailableError: it is not, or that is none to compute in.
    """
    if dtype not in _DTYPES:
        raise UnavailableError(
            f"the embedding is {_named(dtype)}, in which nothing is computed; cast the module, say with module.to(torch.bfloat16)"
        )
    if weight.dtype != dtype:
        raise UnavailableError(
            f"'{name}' is {_named(weight.dtype)}, and the embedding is {_named(dtype)}; cast the module to one dtype, with "
            f"module.to(torch.{_named(dtype)})"
        )


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_rest(
    module: nn.Module, spec: ModelSpec, geometry: Geometry, taken: Collection[int], called: Collection[str]
) -> None:
    """Return if a module is its taken weights (by id) and the parts that are called (by path), and nothing beside them.

    Raises:
        UnavailableError: a hook, a replaced forward, dropout at work, or a parameter that would be left out.
        CheckpointError: RoPE's frequencies are others than the config says.
    """
    if nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks:
        raise UnavailableError("hooks are registered for all modules, and would not run; remove them first")
    inside = tuple(f"{path}." for path in called)
    for path, part in module.named_modules():
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.training and part.p > 0:
            raise UnavailableError(f"'{path}' drops out in training mode; call the module's eval() first")
        if path not in called and not path.startswith(inside) and hooked(part):
            shown = f"'{path}'" if path else "the module"
            raise UnavailableError(
                f"{shown} ({type(part).__name__}) has forward hooks or its own forward, which would not run; remove them first"
            )
    for name, parameter in module.named_parameters():
        if id(parameter) not in taken and not name.startswith(inside):
            raise UnavailableError(
                f"'{name}' has no place in a model of the family {spec.family} and would be left out; merge or remove it first"
            )
    for name, found in _frequencies(module, inside):
        expected = geometry.rope.frequencies().double()
        if found.shape != expected.shape or not torch.allclose(
            found.double().cpu(), expected, rtol=max(1e-3, torch.finfo(found.dtype).eps)
        ):
            raise CheckpointError(
                f"'{name}' are not RoPE's frequencies for the config's theta of {geometry.rope.theta}"
            )


def _frequencies(module: nn.Module, inside: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    """Yield the buffers that hold RoPE's frequencies, if they are held."""
    for name, buffer in module.named_buffers():
        if name.endswith("inv_freq") and not buffer.is_meta and not name.startswith(inside):
            yield name, buffer
