"""Finding plugins and registering them.

pluggy's own entry-point loader drops a duplicate name silently and lets a broken plugin's traceback through without
saying whose it is; this one reports both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points, version
from types import ModuleType
from typing import Any, TypeVar

import attrs
import pluggy

from esdllm.config.project import DISABLE_VARIABLE
from esdllm.errors import PluginError, known
from esdllm.foreign import reason
from esdllm.hookspecs import INTERFACE, INTERFACE_NAME, PROJECT, HookSpecs
from esdllm.plugins.sources import may_name

__all__ = [
    "BrokenPlugin",
    "Origin",
    "Plugins",
    "blaming",
    "disabled_names",
    "installed_points",
    "leaving_out",
    "load_plugins",
]

T = TypeVar("T")


@attrs.frozen
class Origin:
    """Where a plugin comes from."""

    plugin: str
    distribution: str = "(registered in this process)"
    version: str = ""

    def __str__(self) -> str:
        return f"plugin '{self.plugin}' of {self.distribution} {self.version}".rstrip()


@attrs.frozen
class Plugins:
    """A pluggy manager, and the origin of each plugin in it."""

    manager: pluggy.PluginManager
    origins: Mapping[str, Origin]
    blocked: tuple[str, ...]

    def offers(self, hook: str) -> list[tuple[Origin, Mapping[str, Any]]]:
        """Return what every plugin's implementation of `hook` offers, first registered first."""
        found: list[tuple[Origin, Mapping[str, Any]]] = []
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            origin = self.origins[implementation.plugin_name]
            with blaming(origin.plugin, f"{hook} of {origin} failed"):
                offered = implementation.function()
                if not isinstance(offered, Mapping):
                    raise PluginError(
                        f"{hook} of {origin} returned {type(offered).__name__}; return a mapping from names"
                    )
                found.append((origin, dict(offered)))
        return found


@contextmanager
def blaming(plugin: str, failed: str) -> Iterator[None]:
    """Note `plugin` on a PluginError that is raised within the block; what else a plugin's code raises becomes one."""
    try:
        yield
    except PluginError as error:
        error.plugin = error.plugin or plugin
        raise
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise PluginError(f"{failed}: {reason(error)}", plugin) from error


def installed_points() -> list[EntryPoint]:
    """Return the installed entry points; an editable install may list one twice, which is no clash."""
    unique = {
        (point.name, point.value, point.dist.name if point.dist else ""): point for point in entry_points(group=PROJECT)
    }
    return list(unique.values())


def _origin(point: EntryPoint) -> Origin:
    return Origin(point.name, point.dist.name, point.dist.version) if point.dist else Origin(point.name)


def disabled_names() -> tuple[str, ...]:
    """Return the plugins that ``ESDLLM_DISABLE_PLUGINS`` names."""
    return tuple(name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(",") if name.strip())


@attrs.frozen
class BrokenPlugin:
    """A plugin that has to be left out for the others to work."""

    name: str
    """by which ESDLLM_DISABLE_PLUGINS leaves it out"""
    reason: str


def leaving_out(broken: list[BrokenPlugin], use: Callable[[Plugins], T], naming: str = "") -> T:
    """Return what `use` makes of the installed plugins without `broken` ones; those that it finds broken are added there.

    `naming` is that of `load_plugins`.

    Raises:
        PluginError: what is wrong cannot be mended by leaving a plugin out, such as a name in ``ESDLLM_DISABLE_PLUGINS`` that
            no plugin has.
    """
    names = [plugin.name for plugin in broken]
    try:
        return use(load_plugins(disabled=[*disabled_names(), *names], naming=naming))
    except PluginError as error:
        if not error.plugin or error.plugin in names:
            raise
        broken.append(BrokenPlugin(error.plugin, str(error)))
    return leaving_out(broken, use, naming)


def _register(manager: pluggy.PluginManager, plugin: object, origin: Origin) -> None:
    with blaming(origin.plugin, f"{origin} cannot be registered"):
        _refuse_other_interfaces(plugin, origin)
        _refuse_unknown_hooks(plugin, origin)
        try:
            manager.register(plugin, name=origin.plugin)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginError(f"{origin} implements a hook wrongly: {error}") from error
        except ValueError as error:  # pluggy's word for one object under two names
            raise PluginError(
                f"{origin} cannot be registered: {str(error).splitlines()[0]}; register each plugin once"
            ) from error


def _refuse_other_interfaces(plugin: object, origin: Origin) -> None:
    """Refuse a plugin that was built for another version of the interface; one that states none is taken to fit."""
    stated = getattr(plugin, INTERFACE_NAME, INTERFACE)
    if type(stated) is not int:
        raise PluginError(
            f"{origin} states {INTERFACE_NAME} = {stated!r}; give the version's number, such as {INTERFACE}"
        )
    if stated == INTERFACE:
        return
    here = f"this is esdllm {version(PROJECT)} with interface {INTERFACE}"
    it = origin.distribution if origin.version else "the plugin"
    older = stated < INTERFACE
    mend = f"upgrade {it}, or install an older esdllm" if older else f"upgrade esdllm, or install an older {it}"
    raise PluginError(
        f"{origin} was built for interface {stated} of esdllm, and {here}; {mend}, or leave it out with "
        f"{DISABLE_VARIABLE}={origin.plugin}"
    )


def _refuse_unknown_hooks(plugin: object, origin: Origin) -> None:
    """Refuse functions that look like hooks but are none: a misspelt name, or a missing `@hookimpl`."""
    hooks = [name for name in vars(HookSpecs) if name.startswith(f"{PROJECT}_")]
    names = vars(plugin) if isinstance(plugin, ModuleType) else dir(plugin)
    for name in names:
        if name.startswith(f"{PROJECT}_") and callable(value := getattr(plugin, name)):
            if name not in hooks:
                raise PluginError(f"{origin} implements the unknown hook '{name}'; {known(name, hooks)}")
            if not hasattr(value, f"{PROJECT}_impl"):
                raise PluginError(f"{origin} defines '{name}' without @esdllm.hookimpl; add the decorator")


def load_plugins(
    extra: Mapping[str, object] | None = None,
    *,
    installed: bool = True,
    disabled: Iterable[str] | None = None,
    naming: str = "",
) -> Plugins:
    """Return a fresh manager with the installed plugins and those of `extra` (name -> module or object).

    `disabled` names plugins to leave out; by default those of the environment variable ``ESDLLM_DISABLE_PLUGINS``. An
    installed plugin whose module's source does not hold the text `naming` is not imported; see `may_name`.

    Raises:
        PluginError: two plugins have one name; a plugin cannot be imported (chained); a hook is misspelt; a plugin was
            built for another version of the interface; `disabled` names a plugin that does not exist.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecs)
    blocked = disabled_names() if disabled is None else tuple(disabled)
    origins: dict[str, Origin] = {}
    points = installed_points() if installed else []
    for point in points:
        origin = _origin(point)
        if point.name in origins and point.name not in blocked:
            raise PluginError(
                f"two plugins are named '{point.name}': one of {origins[point.name].distribution} and one of "
                f"{origin.distribution}; uninstall one, or block both with {DISABLE_VARIABLE}={point.name}",
                point.name,
            )
        origins[point.name] = origin
    for name in extra or {}:
        if name in origins:
            raise PluginError(
                f"two plugins are named '{name}': one of {origins[name].distribution} and a registered one; "
                "uninstall the package, or do not register it"
            )
        origins[name] = Origin(name)
    for name in blocked:
        if name not in origins:
            raise PluginError(f"cannot disable the plugin '{name}', it is not installed; {known(name, origins)}")
    for point in points:
        if point.name not in blocked and may_name(point, naming):
            _register(manager, _import(point), origins[point.name])
    for name, plugin in (extra or {}).items():
        if name not in blocked:
            _register(manager, plugin, origins[name])
    return Plugins(manager, origins, blocked)


def _import(point: EntryPoint) -> object:
    try:
        return point.load()
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # an exit too: it would end every command without a word
        ours = isinstance(error, ImportError) and (error.name or "").partition(".")[0] == PROJECT
        hint = "it may be built for another esdllm: upgrade it; " if ours else ""
        raise PluginError(
            f"{_origin(point)} ({point.value}) cannot be imported: {reason(error)}; {hint}mend or uninstall it, or "
            f"leave it out with {DISABLE_VARIABLE}={point.name}",
            point.name,
        ) from error
