"""Kernels: each of our own beside torch's operators, called as a step calls it, and whole steps with those that are no default.

What a kernel gains is to be seen here before it becomes the default.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import attrs
import torch
from torch import Tensor

from esdllm import Catalogue, ModelSpec, runs_triton
from esdllm.checkpoints.loading import Model
from esdllm.config import ComponentConfig
from esdllm.plan import Phase
from esdllm.runtime.graphs import CudaCapture
from esdllm.views import CacheShape, CacheWrite, ImportanceView, KeyValue
from esdllm_backends.cache.dense import DenseStore
from esdllm_models.elementwise import PLAIN, Rotation
from esdllm_policies import importance, sampling
from on_gpu.ground import Ground

Work = Callable[[], Any]
_LAYERS = 8  # whose keys are read in turn, so that no cache of the device holds them
_OPTIONAL = ("attention=triton", "sampler.fused=true", "importance.fused=true")
"""settings that choose a kernel of ours which is no default"""


def run(ground: Ground) -> None:
    """Run the stage."""
    catalogue = Catalogue.load()
    model = ground.model(catalogue)
    with torch.inference_mode():
        for batch in (2,) if ground.toy else (8, 1, 32):
            for of, works in Bench(ground, catalogue, model.spec, batch).compared():
                for name, work in works.items():
                    ground.attempt(f"batch {batch}, {of}", f"us: {name}", partial(_microseconds, ground, work))
                if len(works) > 1:
                    ground.attempt(f"batch {batch}, {of}", "apart", partial(_apart, *works.values()))
    for batch in (2,) if ground.toy else (8, 1):
        for sets in ((), *((one,) for one in _OPTIONAL), _OPTIONAL):
            if not sets or runs_triton(ground.device):
                of = f"batch {batch}, es-dllm with {', '.join(sets) or 'its defaults'}"
                ground.attempt(of, "ms: skip", partial(_skip, ground, catalogue, model, batch, sets))


@attrs.frozen
class Bench:
    """What is done in several ways, at the widths of a model and for so many rows."""

    ground: Ground
    catalogue: Catalogue
    spec: ModelSpec
    batch: int

    def compared(self) -> Iterator[tuple[str, Mapping[str, Work]]]:
        """Yield what is done, and the ways to do it: torch's first, then those that serve here."""
        for window in (5,) if self.ground.toy else (16, 64):
            yield from self._attention(window)
        window, hidden = (5 if self.ground.toy else 16), self.spec.n_heads * self.spec.head_dim
        yield f"head of {window}", self._head(window)
        yield f"importance of {window}", self._importance(window)
        x, y, weight = self._drawn(window, hidden), self._drawn(window, hidden), self._drawn(1, hidden)[0, 0]
        joint, queries = self._drawn(window, 2 * self.spec.intermediate), self._heads(window)
        places = Rotation(*torch.rand(2, self.batch, window, 1, self.spec.head_dim // 2, device=self.ground.device))
        for of, call in {
            "sum and norm": lambda between: between.add_norm(x, y, weight, 1e-5),
            "gate": lambda between: between.gate(joint),
            "rotation": lambda between: between.rotate(queries, places),
        }.items():
            ways = {"torch": PLAIN, "ours": _ours("esdllm_models.fused", "Fused")}
            yield f"{of} of {window}", {name: partial(call, way) for name, way in ways.items() if way is not None}
        yield f"keys and values of {window} into the cache", self._written(window)

    def _attention(self, window: int) -> Iterator[tuple[str, Mapping[str, Work]]]:
        length, ground = self.ground.setting["prompt"] + self.ground.setting["gen_length"], self.ground
        layers = [(self._heads(length), self._heads(length)) for _ in range(_LAYERS)]
        queries, left = (
            self._heads(window),
            torch.arange(self.batch, device=ground.device) * (length // 3) // self.batch,
        )
        hidden = torch.arange(length, device=ground.device) < left[:, None]
        bias = torch.zeros(hidden.shape, dtype=ground.dtype, device=ground.device).masked_fill(hidden, -math.inf)
        backends = {
            name: self.catalogue.build("attention", ComponentConfig(name)) for name in ("sdpa", "xformers", "triton")
        }
        serving = {
            name: one for name, one in backends.items() if not one.problems(self.spec, ground.device, ground.dtype)
        }
        if _interpreted():
            serving["triton"] = backends["triton"]
        for how, known in {"": (None, None), ", padded": (bias, left)}.items():
            ways = {name: partial(_in_turn, one, queries, layers, *known) for name, one in serving.items()}
            yield f"attention of {window}{how}, {_LAYERS} layers", ways

    def _head(self, window: int) -> Mapping[str, Work]:
        logits = self._drawn(window, self.spec.vocab)
        ways = {"torch": sampling._most_probable, "ours": _ours("esdllm_policies.fused", "most_probable")}
        called = {name: partial(way, logits) for name, way in ways.items() if way is not None}
        return {name: partial(_probability, call) for name, call in called.items()}

    def _importance(self, window: int) -> Mapping[str, Work]:
        confidence = torch.rand(self.batch, window, device=self.ground.device)
        x, last = self._drawn(window, self.spec.hidden), self._drawn(window, self.spec.hidden)
        places = torch.arange(window, device=self.ground.device).expand(self.batch, -1)
        view = ImportanceView(0, x, last, confidence, confidence > 0.5, confidence > 0.8, places, places, places)
        ways = {"torch": partial(importance.hybrid, view, 0.5)}
        if (ours := _ours("esdllm_policies.fused", "hybrid_score")) is not None:
            ways["ours"] = partial(ours, x, last, confidence, view.committed, 0.5, 2.0, 3.0)
        return ways

    def _written(self, window: int) -> Mapping[str, Work]:
        ground, spec = self.ground, self.spec
        length = ground.setting["prompt"] + ground.setting["gen_length"]
        shape = CacheShape(
            self.batch, length, 1, spec.n_kv_heads, spec.head_dim, spec.hidden, (), ground.dtype, ground.device
        )
        new, positions = self._heads(window), torch.arange(window, device=ground.device).expand(self.batch, -1)
        write = CacheWrite(0, positions, new, new, new, None, positions, Phase.ALL)
        caches = {}
        for name, way in {"torch": None, "ours": _ours("esdllm_backends.cache.lines", "write_lines")}.items():
            if name == "torch" or way is not None:
                caches[name] = DenseStore().allocate(shape)
                caches[name]._write_lines = way
        return {name: partial(cache.update, write) for name, cache in caches.items()}

    def _drawn(self, *shape: int) -> Tensor:
        return torch.randn(self.batch, *shape, dtype=self.ground.dtype, device=self.ground.device)

    def _heads(self, number: int) -> Tensor:
        """Return (R, number, H, D), each head's together as a cache has them."""
        return self._drawn(self.spec.n_heads, number, self.spec.head_dim).transpose(1, 2)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _ours(module: str, name: str) -> Any:
    """Return a kernel of ours, or an instance of a class of them; None where Triton does not run."""
    if not (torch.cuda.is_available() or _interpreted()):
        return None
    found = getattr(import_module(module), name)
    return found() if isinstance(found, type) else found


def _in_turn(
    backend: Any, queries: Tensor, layers: list[tuple[Tensor, Tensor]], bias: Tensor | None, padding: Tensor | None
) -> Tensor:
    """Return attention over all layers, one after the other."""
    return torch.stack([backend.attend(queries, KeyValue(*layer, bias, padding)) for layer in layers])


def _probability(call: Work) -> Tensor:
    return call()[-1]


def _microseconds(ground: Ground, work: Work) -> float:
    """Return what work takes, recorded as a step is: the host's launches are no part of it."""
    if ground.device.type != "cuda":
        return 1e3 * ground.milliseconds(work)
    capture = CudaCapture(ground.device)
    capture.prepare(work)
    return 1e3 * ground.milliseconds(capture.record(work), 20)


def _apart(*works: Work) -> str:
    """Return how far what works give is from what the first gives, at the most."""
    first, *others = (_tensors(work()) for work in works)
    worst = [
        max((a.float() - b.float()).abs().max().item() for a, b in zip(first, other, strict=True)) for other in others
    ]
    return ", ".join(f"{far:.2g}" for far in worst)


def _tensors(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [x for x in found if isinstance(x, Tensor)]


def _skip(ground: Ground, catalogue: Catalogue, model: Model, batch: int, sets: tuple[str, ...]) -> float:
    """Return the median of a run's skip steps."""
    engine = ground.build(model, catalogue, "es-dllm", *sets)
    engine.warm(*ground.prompts(batch).shape)
    engine.generate(ground.prompts(batch))
    taken = [1e3 * step.seconds for step in engine.clock.steps() if step.plan.skips]
    engine.close()
    return statistics.median(taken)
