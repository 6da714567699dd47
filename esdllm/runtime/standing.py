"""What stands from run to run: caches and canvases, each at its place in memory, which recorded steps go by."""

from __future__ import annotations

import attrs

from esdllm.interfaces import Cache, ClosingCache, LendingCache
from esdllm.plugins.capabilities import closing, lending
from esdllm.runtime.canvas import Canvas
from esdllm.runtime.components import Components
from esdllm.views import CacheShape

__all__ = ["Standing", "standing"]

_FORMS = 64  # caches and canvases that are kept at most: recorded steps take memory of the host


@attrs.define(eq=False)
class Standing:
    """The caches and canvases of an engine, which makes one run at a time.

    With `shares` every form of a cache is kept: caches of other forms lie in the memory of the largest, where the store can lend
    it. Without, the last run's alone is kept.
    """

    components: Components
    shares: bool = False
    cache: Cache | None = attrs.field(default=None, init=False)
    """that of the run that is going on, or of the last; None if none is kept"""
    shape: CacheShape | None = attrs.field(default=None, init=False)
    """that cache's"""
    _closing: ClosingCache | None = attrs.field(default=None, init=False)
    _lending: LendingCache | None = attrs.field(default=None, init=False)
    _caches: dict[CacheShape, Cache] = attrs.field(factory=dict, init=False)
    _canvases: dict[object, Canvas] = attrs.field(factory=dict, init=False)

    def can_serve(self, shape: CacheShape) -> bool:
        """Return whether a cache of this shape is kept, or finds room in the memory of one that is."""
        new = shape not in self._caches and self.shares and len(self._caches) < _FORMS
        if new and self._lending is not None and (lent := self._lending.lend(shape)) is not None:
            self._caches[shape] = lent
        return shape in self._caches

    def allocate(self, shape: CacheShape) -> None:
        """Make a cache of this shape, the memory of which others may share; nothing else may be kept.

        Raises:
            UnavailableError: the store cannot hold it.
        """
        self.components.check_store(shape)
        made = self._caches[shape] = self.components.cache.allocate(shape)
        self._closing, self._lending = closing(made), lending(made)

    def take(self, shape: CacheShape) -> Cache:
        """Return the cache of a shape, emptied: that of the run that begins."""
        self.shape, self.cache = shape, self._caches[shape]
        self.cache.reset()
        return self.cache

    def canvas(self, canvas: Canvas) -> Canvas:
        """Return a canvas for this run: one of the same form that stands already, and takes over what this one holds."""
        if not self.shares:
            return canvas
        return standing(self._canvases, canvas)

    def drop(self) -> None:
        """Let go of everything."""
        held, self._closing, self._lending, self.cache, self.shape = self._closing, None, None, None, None
        self._caches.clear()
        self._canvases.clear()
        if held is not None:
            held.close()


def standing(known: dict[object, Canvas], canvas: Canvas) -> Canvas:
    """Return the known canvas of the same form, which takes over what this one holds; else this one, known from now on."""
    found = known.setdefault(canvas.form, canvas)
    if found is not canvas:
        found.take_over(canvas)
    return found
