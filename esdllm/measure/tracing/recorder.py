"""What is seen of a run from outside: its components in wrappers that note what passes through, and a step observer.

One prompt, without padding: a position counted from the row's first token is a position of the canvas.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esdllm.measure.tracing.trace import Candidate, Kind, Scored, TraceStep
from esdllm.plan import Block, Moment, Phase, Scope, StepPlan
from esdllm.runtime.components import Components
from esdllm.runtime.variation import relative_variation
from esdllm.views import CacheShape, CacheWrite, Candidates, ImportanceView, KeyValue, ModelSpec, SampleView, StepRecord

__all__ = ["TraceRecorder"]

_BEST = 3


class _Wrapper:
    """Passes on everything that a subclass does not take: attributes that a component may have and may lack too."""

    def __init__(self, inner: Any, recorder: TraceRecorder) -> None:
        self._inner, self._recorder = inner, recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Scorer(_Wrapper):
    def score(self, view: ImportanceView) -> Tensor:
        score: Tensor = self._inner.score(view)
        self._recorder.scored(view, score, history=self._inner.keeps_history)
        return score


class _Sampler(_Wrapper):
    def sample(self, view: SampleView) -> Candidates:
        found: Candidates = self._inner.sample(view)
        self._recorder.sampled(view, found)
        return found


class _Refresh(_Wrapper):
    def scope(self, moment: Moment) -> Scope:
        self._recorder.asked = self._inner.scope(moment)
        return self._recorder.asked


class _Store(_Wrapper):
    def allocate(self, shape: CacheShape) -> Any:
        return _Cache(self._inner.allocate(shape), self._recorder)


class _Cache(_Wrapper):
    def update(self, write: CacheWrite) -> KeyValue:
        self._recorder.written(write)
        found: KeyValue = self._inner.update(write)
        return found


class TraceRecorder:
    """A step observer that, with its wrappers around the components, notes all that a trace holds.

    Keeps each layer's last values of each position on the device, to compare with: half of what a dense cache takes.
    """

    def __init__(self) -> None:
        self.asked: Scope | None = None
        """what the refresh policy asked for last"""
        self.tokens: NDArray[Any] = np.empty(0, dtype=np.int64)
        """(L,) the canvas before the first step"""
        self._steps: list[TraceStep] = []
        self._moments: list[tuple[Moment, StepPlan, Scope | None]] = []

    def around(self, components: Components) -> Components:
        """Return the components in wrappers; they are never compiled."""
        return attrs.evolve(
            components,
            refresh=_Refresh(components.refresh, self),
            importance=_Scorer(components.importance, self),
            sampler=_Sampler(components.sampler, self),
            cache=_Store(components.cache, self),
            config=attrs.evolve(components.config, compile=False),
        )

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        """Take the canvas before the first step."""
        self._spec, self.tokens = spec, tokens[0].cpu().numpy().copy()
        self._held: dict[int, Tensor] = {}
        self._stood = torch.zeros(spec.n_layers, tokens.shape[1], dtype=torch.bool, device=tokens.device)
        self._clear()

    def _clear(self) -> None:
        self._depth = torch.zeros_like(self._stood[0], dtype=torch.int64)
        self._change = torch.full(self._stood.shape, torch.nan, device=self._stood.device)
        self._scored: list[Scored] = []
        self._candidates: tuple[Candidate, ...] = ()

    def written(self, write: CacheWrite) -> None:
        """Take a layer's values on their way into the cache, of the first row."""
        layer, positions = write.layer, write.positions[0]
        values = write.values[0].flatten(1)
        if layer not in self._held:
            self._held[layer] = values.new_zeros(len(self.tokens), values.shape[1])
        held, stood = self._held[layer], self._stood[layer]
        change = relative_variation(values, held[positions]).masked_fill(~stood[positions], torch.nan)
        self._change[layer, positions] = change
        held[positions], stood[positions] = values, True
        self._depth[positions] = layer + 1

    def scored(self, view: ImportanceView, score: Tensor, history: bool) -> None:
        """Take what a skip layer chooses by, of the first row."""
        positions = view.positions[0].cpu().numpy()
        importance, variation = (np.full(len(self.tokens), np.nan, dtype=np.float32) for _ in range(2))
        importance[positions] = score[0].float().cpu().numpy()
        if history:
            variation[positions] = relative_variation(view.x[0], view.last[0]).cpu().numpy()
        self._scored.append(Scored(view.layer, importance, variation))

    def sampled(self, view: SampleView, found: Candidates) -> None:
        """Take the candidates of the first row, and the tokens that were most probable."""
        best = view.logits[0].softmax(-1).topk(min(_BEST, view.logits.shape[-1]), dim=-1)
        columns = (view.positions[0] + self._spec.logit_shift).tolist()
        rows = zip(
            columns,
            found.tokens[0].tolist(),
            found.confidence[0].tolist(),
            best.indices.tolist(),
            best.values.tolist(),
            strict=True,
        )
        self._candidates = tuple(
            Candidate(column, token, confidence, tuple(zip(tokens, shares, strict=True)))
            for column, token, confidence, tokens, shares in rows
            if column < len(self.tokens)  # the last position of a shifted model decides nothing
        )

    def step(self, record: StepRecord) -> None:
        """Take a step's commits, and close it."""
        moment, plan = record.moment, record.plan
        written = record.committed if record.edited is None else record.committed | record.edited
        committed = written[0].nonzero()[:, 0]
        revoked = [] if record.revoked is None else record.revoked[0].nonzero()[:, 0].tolist()
        self._moments.append((moment, plan, self.asked))
        self._steps.append(
            TraceStep(
                step=moment.step,
                step_in_block=moment.step_in_block,
                block_number=moment.block,
                block=Block(*record.block),
                window=self.asked.window.value if self.asked else "",
                kind="reuse",
                keep=plan.keep,
                depth=self._depth.cpu().numpy(),
                change=self._change.cpu().numpy(),
                scored=tuple(self._scored),
                candidates=self._candidates,
                committed=dict(zip(committed.tolist(), record.tokens[0][committed].tolist(), strict=True)),
                revoked=tuple(revoked),
            )
        )
        self._clear()

    def end(self) -> None:
        """Free what was held to compare with."""
        self._held = {}

    def steps(self) -> tuple[TraceStep, ...]:
        """Return the steps, with what each was for: a step is a refresh if the next one counts from it."""
        following = [moment for moment, _, _ in self._moments[1:]]
        kinds: list[Kind] = []
        for i, (_, plan, asked) in enumerate(self._moments):
            if plan.skips:
                kinds.append("skip")
            elif i < len(following):
                kinds.append("refresh" if following[i].since_refresh == 1 else "reuse")
            else:
                refreshed = plan.phase is Phase.SELECT or (asked is not None and asked.refresh)
                kinds.append("refresh" if refreshed else "reuse")
        return tuple(attrs.evolve(step, kind=kind) for step, kind in zip(self._steps, kinds, strict=True))
