"""The hooks: how a package offers components to esdllm.

A plugin is a module (or object) that is named by an entry point of the group ``esdllm`` and defines any of the functions
below, each marked with `hookimpl`:

```python
from esdllm import hookimpl

@hookimpl
def esdllm_importance_scorers():
    return {"mine": MyScorer}
```

Every hook takes nothing and returns a mapping from names to factories. All are called once, while a catalogue is filled
and before any engine exists; none is ever called during generation. What one plugin returns is never passed to another:
a hook cannot be stopped, wrapped or overridden, and a name that two plugins offer is an error that names both.

A factory is a frozen attrs class: its fields are the options, their defaults and validators are the checks, the field's
``metadata["help"]`` and the first line of the class' docstring are what ``esdllm plugins`` prints. Names are lower case, words
joined by hyphens.

A plugin may state the version of the interface that it was built for, as ``esdllm_interface = 2``. One that was built for another
than `INTERFACE` is refused with a sentence that says what to install; one that states none is taken to be built for this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from esdllm.interfaces import (
        AttentionBackend,
        BlockSchedule,
        CacheStore,
        ImportanceScorer,
        ModelFamily,
        RefreshPolicy,
        SkipSchedule,
        StepObserver,
        Suite,
        TokenSampler,
        UnmaskingPolicy,
    )
    from esdllm.views import Preset

__all__ = ["INTERFACE", "INTERFACE_NAME", "PROJECT", "HookSpecs", "hookimpl"]

PROJECT = "esdllm"
INTERFACE = 2
"""Version of the interface between esdllm and its plugins: the hooks, the protocols, the views, the plans.

Raised only when a plugin that was right could break: a name or an argument that goes, a meaning that changes. What is added,
such as a field of a view with a default, does not raise it.
"""
INTERFACE_NAME = "esdllm_interface"
"""The name under which a plugin module may state the version that it was built for."""
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class HookSpecs:
    """The thirteen hooks."""

    @hookspec
    def esdllm_importance_scorers(self) -> Mapping[str, Callable[..., ImportanceScorer]]:
        """Offer importance scorers: which positions go on to deeper layers. Configuration: ``[importance]``."""
        raise NotImplementedError

    @hookspec
    def esdllm_skip_schedules(self) -> Mapping[str, Callable[..., SkipSchedule]]:
        """Offer skip schedules: how many positions each layer hands on. Configuration: ``[skip]``."""
        raise NotImplementedError

    @hookspec
    def esdllm_refresh_policies(self) -> Mapping[str, Callable[..., RefreshPolicy]]:
        """Offer refresh policies: which positions each step computes. Configuration: ``[refresh]``."""
        raise NotImplementedError

    @hookspec
    def esdllm_block_schedules(self) -> Mapping[str, Callable[..., BlockSchedule]]:
        """Offer block schedules: what is decoded together. Configuration: ``[blocks]``."""
        raise NotImplementedError

    @hookspec
    def esdllm_token_samplers(self) -> Mapping[str, Callable[..., TokenSampler]]:
        """Offer token samplers: which token to put at a position. Configuration: ``[sampler]``."""
        raise NotImplementedError

    @hookspec
    def esdllm_unmasking_policies(self) -> Mapping[str, Callable[..., UnmaskingPolicy]]:
        """Offer unmasking policies: which positions to commit. Configuration: ``[unmasking]``."""
        raise NotImplementedError

    @hookspec
    def esdllm_attention_backends(self) -> Mapping[str, Callable[..., AttentionBackend]]:
        """Offer attention backends. Configuration: ``[attention]``; there ``auto``, which is no backend's name, chooses one."""
        raise NotImplementedError

    @hookspec
    def esdllm_cache_stores(self) -> Mapping[str, Callable[..., CacheStore]]:
        """Offer cache stores: where keys and values live. Configuration: ``[cache]``."""
        raise NotImplementedError

    @hookspec
    def esdllm_model_adapters(self) -> Mapping[str, Callable[..., ModelFamily]]:
        """Offer model families, by name: config.json's ``model_type``, unless they say more. Used by `esdllm.load_model`."""
        raise NotImplementedError

    @hookspec
    def esdllm_presets(self) -> Mapping[str, Preset]:
        """Offer named configurations. Values are `Preset` objects, not factories. Used by ``--preset``."""
        raise NotImplementedError

    @hookspec
    def esdllm_step_observers(self) -> Mapping[str, Callable[..., StepObserver]]:
        """Offer step observers: traces and live views. Configuration: ``[[observers]]``."""
        raise NotImplementedError

    @hookspec
    def esdllm_suites(self) -> Mapping[str, Callable[..., Suite]]:
        """Offer suites of problems with right answers. Used by ``esdllm eval --suite``."""
        raise NotImplementedError

    @hookspec
    def esdllm_commands(self) -> Mapping[str, Callable[..., Any]]:
        """Offer commands of ``esdllm``: functions as typer takes them, or ``typer.Typer`` objects. Used by ``esdllm NAME``."""
        raise NotImplementedError
