"""Taking wrappers off a module, if they add nothing: PEFT's, torch.compile's, and those of data parallelism."""

from __future__ import annotations

from typing import Any

from torch import nn

from esdllm.errors import UnavailableError

__all__ = ["unwrapped"]


def unwrapped(module: Any) -> Any:
    """Return the model that wrappers stand around.

    Raises:
        UnavailableError: a wrapper has parameters or hooks of its own, such as a soft prompt, that would be left out.
    """
    while (inner := _inner(module)) is not None:
        _check(module, inner)
        module = inner
    return module


def _inner(module: Any) -> Any:
    if hasattr(module, "get_base_model"):  # PEFT's, through whatever stands around it
        return module.get_base_model()
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return module.module
    return dict(module.named_children()).get("_orig_mod") if isinstance(module, nn.Module) else None  # torch.compile's


def _check(wrapper: Any, inner: Any) -> None:
    who = type(wrapper).__name__
    adapters = getattr(wrapper, "peft_config", None)
    for name, adapter in adapters.items() if isinstance(adapters, dict) else ():
        if getattr(adapter, "is_prompt_learning", False):
            raise UnavailableError(f"the {who}'s adapter '{name}' is a soft prompt, which has no place in a canvas")
    if not (isinstance(wrapper, nn.Module) and isinstance(inner, nn.Module)):
        return
    held, parts = set(map(id, inner.parameters())), set(map(id, inner.modules()))
    beside = [name for name, parameter in wrapper.named_parameters() if id(parameter) not in held]
    if beside:
        raise UnavailableError(
            f"the {who} holds '{beside[0]}' beside the model, which would be left out; merge it first, or pass the model alone"
        )
    for path, part in wrapper.named_modules():
        if id(part) not in parts and (part._forward_hooks or part._forward_pre_hooks):
            shown = f"'{path}' of the {who}" if path else f"the {who}"
            raise UnavailableError(f"{shown} has forward hooks, which would not run; remove them first")
