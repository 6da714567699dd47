"""The components of a configuration, built and checked against each other, the model and the machine."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import attrs
import torch

from esdllm.config import SECTIONS, DecodeConfig, merge
from esdllm.errors import ConfigError, UnavailableError
from esdllm.hookspecs import PROJECT
from esdllm.interfaces import (
    AttentionBackend,
    BlockSchedule,
    Cache,
    CacheStore,
    ImportanceScorer,
    ModelAdapter,
    RefreshPolicy,
    SkipSchedule,
    StepObserver,
    TokenSampler,
    UnmaskingPolicy,
)
from esdllm.plan import BlockCausal, Layout, Phase
from esdllm.planning import Planner, Planners
from esdllm.planning.coming import outputs, returning_layers
from esdllm.planning.keeping import KeepCounts
from esdllm.plugins.auto import AttentionChoice, AutoAttention, choose_attention
from esdllm.plugins.capabilities import Capabilities, attention_problems, offset
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.parts import Parts
from esdllm.views import CacheShape, ModelSpec

__all__ = ["Components", "titled"]


@attrs.frozen(eq=False)
class Components:
    """One component a section, in the order of the sections."""

    blocks: BlockSchedule
    refresh: RefreshPolicy
    skip: SkipSchedule
    importance: ImportanceScorer
    sampler: TokenSampler
    unmasking: UnmaskingPolicy
    cache: CacheStore
    attention: AttentionBackend
    observers: tuple[StepObserver, ...]
    config: DecodeConfig
    attention_choice: AttentionChoice | None = None
    """what `attention = "auto"` chose, and why not the others; None where a backend is named, or none chosen yet"""
    third_party: frozenset[str] = frozenset()
    """the sections whose component comes from a plugin that is not esdllm's own"""
    can: Capabilities = attrs.field(init=False)
    """what they can do beyond the least of their kinds"""

    kernels: Hashable = attrs.field(init=False, repr=False)
    """what rows have in common whose steps call the same kernels with the same options"""

    @can.default
    def _can(self) -> Capabilities:
        return Capabilities.of(self.refresh, self.blocks, self.unmasking, self.importance, self.skip)

    @classmethod
    def resolve(cls, config: DecodeConfig, catalogue: Catalogue) -> Components:
        """Return the components that a configuration names.

        Raises:
            ConfigError: an unknown name or option, or a value out of range.
            PluginError: a member of a component is misspelt, missing or of the wrong kind; names it.
        """
        named: dict[str, Any] = {section: catalogue.build(section, getattr(config, section)) for section in SECTIONS}
        observers = tuple(catalogue.build("observers", item) for item in config.observers)
        third_party = frozenset(
            section for section in SECTIONS if _is_third_party(catalogue, section, getattr(config, section).name)
        )
        return cls(**named, observers=observers, config=config, third_party=third_party)

    def varied(self, settings: Mapping[str, Any], catalogue: Catalogue) -> Components:
        """Return the components of this configuration with other settings, as `DecodeConfig.from_dict` takes them.

        What `auto` chose to attend with stays.

        Raises:
            ConfigError: an unknown setting, name or option, or a value out of range.
        """
        found = Components.resolve(DecodeConfig.from_dict(merge(self.config.to_dict(), settings)), catalogue)
        if found.config.attention != self.config.attention:
            return found
        return attrs.evolve(found, attention=self.attention, attention_choice=self.attention_choice)

    @kernels.default
    def _kernels(self) -> Hashable:
        config = self.config
        named = [config.importance, config.sampler, config.unmasking]
        if self.can.moving is not None:
            named.append(config.blocks)
        length = 0 if self.can.ending is None else config.block_length
        return repr([each.to_dict() for each in named]), config.cfg_scale, config.delay_eos, length

    def named(self, *sections: str) -> str:
        """Return the names of the components of some sections, as a sentence lists them."""
        return ", ".join(f"{section} '{getattr(self.config, section).name}'" for section in sections)

    def called(self, section: str) -> str:
        """Return what to call a section's component in a sentence: its name and its class."""
        auto = self.attention_choice if section == "attention" else None
        return titled(section, auto.name if auto else getattr(self.config, section).name, getattr(self, section))

    @property
    def branches(self) -> int:
        """How many rows of the model's batch a row is: 2 under guidance."""
        return 2 if self.config.cfg_scale else 1

    def room(self, first: int, length: int, forms: bool, attention: BlockCausal | None = None) -> int:
        """Return the columns of padding to put before rows of `length` columns whose first mask is at `first`.

        A moving block can then reach back, so that its window is as long for a short row alone as for the same row in a batch.
        And where a step of another form is compiled or recorded anew, `forms`, prompts of many lengths share them; not so where
        the store chooses keys, for among equal ones it goes by their place, which padding moves. Blocks of `attention` go
        on beginning where they do.
        """
        room = max(0, self.can.reach - first)
        if not forms or any(self.cache.phase(step) is Phase.SELECT for step in range(self.config.block_length)):
            return room
        if attention is not None:
            return -(length + -length % attention.size) % math.lcm(self.config.canvas_multiple, attention.size)
        return room + -(room + length) % self.config.canvas_multiple

    def columns(self, length: int, spec: ModelSpec, forms: bool) -> int:
        """Return the most columns that a row of `length` takes that is alone, padding included; `forms` as for `room`."""
        length = length if spec.attention is None else spec.attention.columns(length)
        return length + self.room(0, length, forms, spec.attention)

    def layout(self, prompt: int, spec: ModelSpec, rows: int = 1, device: torch.device | None = None) -> Layout:
        """Return the canvas that `rows` prompts of `prompt` tokens get on a device, the CPU if None, with its padding."""
        recorded = self.config.cuda_graphs and device is not None and device.type == "cuda"
        answer, attention = self.config.gen_length, spec.attention
        before = 0 if attention is None else attention.before(prompt)
        answer += 0 if attention is None else attention.behind(before + prompt + answer)
        length, forms = before + prompt + answer, self.config.compile or recorded
        room = before + self.room(prompt - spec.logit_shift, length, forms, attention)
        canvas = Layout.of(room + prompt, answer, spec.logit_shift, rows, attention)
        return canvas._replace(starts=(room,) * rows) if room else canvas

    def planner(
        self, canvas: Layout, n_layers: int, early_stop: bool = False, few_sights: bool = False, behind: int = 0
    ) -> Planner:
        """Return the planner of a run over a canvas; `few_sights` and `behind` are for rows that share plans (see `Planner`)."""
        return Planner(
            Planners(
                self.skip,
                self.refresh,
                self.blocks,
                self.unmasking,
                self.cache,
                learning=self.can.learning,
                layered=self.can.layered,
                returning=self.can.returning,
                pruning=self.can.pruning,
                moves=self.can.moving is not None,
                reach=self.can.reach,
                revisions=self.can.revisions,
                by_block=self.can.by_block,
                edits=self.can.edits,
            ),
            canvas,
            n_layers,
            block_length=self.config.block_length,
            delay_eos=self.config.delay_eos,
            early_stop=early_stop,
            check_every=self.config.check_every,
            head_lengths=1 if self.config.compile else 4,  # four would compile four times as many plans
            few_sights=few_sights or self.config.compile,
            behind=behind,
        )

    def check_plan(self, spec: ModelSpec) -> None:
        """Plan a run after a short prompt, which finds settings that contradict each other.

        Raises:
            ConfigError: they do, or `gen_length` leaves no room for a prompt in the model's context.
        """
        if self.config.gen_length >= spec.context:
            raise ConfigError(
                f"gen_length = {self.config.gen_length} leaves no room for a prompt in the model's context of {spec.context}; "
                "give a smaller one"
            )
        self.planner(self.layout(2, spec), spec.n_layers).forecast()
        self.outputs(spec.n_layers)

    def parts(self, model: ModelAdapter, cache: Cache) -> Parts:
        """Return what a step calls."""
        config, kernels = self.config, (self.attention, self.importance, self.sampler, self.unmasking)
        return Parts(
            model,
            cache,
            *kernels,
            config.cfg_scale,
            config.delay_eos,
            offset(cache),
            blocks=self.can.ending,
            block_length=config.block_length,
        )

    def cache_shape(
        self,
        spec: ModelSpec,
        skip_layers: Sequence[int],
        rows: int,
        length: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> CacheShape:
        """Return what the store is to hold for a run over `rows` of the model's batch, of `length` columns."""
        site, outputs_held = self.importance.site, self.outputs(spec.n_layers)
        remembers = self.importance.keeps_history and site in ("hidden", "query")
        return CacheShape(
            rows=rows,
            length=length,
            n_layers=spec.n_layers,
            n_kv_heads=spec.n_kv_heads,
            head_dim=spec.head_dim,
            features=spec.hidden if site == "hidden" or outputs_held else spec.n_heads * spec.head_dim,
            remembered=tuple(sorted(outputs_held.union(skip_layers if remembers else ()))),
            dtype=dtype,
            device=device,
            compiled=self.config.compile,
        )

    def outputs(self, n_layers: int) -> frozenset[int]:
        """Return the layers whose output is remembered, so that positions can come in behind them; see `outputs`."""
        scorer = self.importance
        return outputs(self.can.returning, self.can.layered, n_layers, scorer.site, scorer.keeps_history)

    def slot_layers(self, n_layers: int, columns: int) -> tuple[int, ...]:
        """Return the layers that drop positions at any step of any row, on a canvas of `columns` at most."""
        keeps = KeepCounts(self.skip, n_layers, Layout(columns, ()), returning_layers(self.can.returning, n_layers))
        return keeps.skip_layers(range(1, self.config.block_length + 1), self.behind)

    @property
    def behind(self) -> int:
        """The hidden columns that a slot has behind its longest row, to fill up a short block's window."""
        return self.config.block_length - 1

    def slots_shape(
        self, spec: ModelSpec, count: int, length: int, forms: bool, device: torch.device, dtype: torch.dtype
    ) -> CacheShape:
        """Return what the store is to hold for `count` slots of `length` columns; padding and `behind` come on top of these.

        Where a step of another form is compiled or recorded anew, `forms`, a spare slot stands behind the others.
        """
        longest = self.columns(length, spec, forms)
        layers, lines = self.slot_layers(spec.n_layers, longest), count + int(forms)
        shape = self.cache_shape(spec, layers, self.branches * lines, longest + self.behind, device, dtype)
        return attrs.evolve(shape, slotted=True)

    def serving(self, catalogue: Catalogue, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Components:
        """Return these components with an attention backend that can serve the model here: the one named, or `auto`'s.

        Raises:
            UnavailableError: the one named cannot, or none can; gives all reasons.
        """
        if isinstance(self.attention, AutoAttention):
            choice = choose_attention(catalogue, spec, device, dtype)
            others = {"attention"} if _is_third_party(catalogue, "attention", choice.name) else frozenset[str]()
            third_party = self.third_party | others
            return attrs.evolve(self, attention=choice.backend, attention_choice=choice, third_party=third_party)
        _refuse("attention", self.config.attention.name, attention_problems(self.attention, spec, device, dtype))
        return self

    def check_store(self, shape: CacheShape) -> None:
        """Refuse a cache store that cannot hold a run.

        Raises:
            UnavailableError: all its reasons.
        """
        _refuse("cache", self.config.cache.name, self.cache.problems(shape))


def titled(kind: str, name: str, component: object) -> str:
    """Return what to call a component in a sentence."""
    return f"{kind} '{name}' ({type(component).__module__}.{type(component).__qualname__})"


def _is_third_party(catalogue: Catalogue, section: str, name: str) -> bool:
    return catalogue.entry(section, name).origin.distribution != PROJECT


def _refuse(kind: str, name: str, problems: list[str]) -> None:
    if problems:
        raise UnavailableError(f"{kind} '{name}' cannot serve here: {'; '.join(problems)}")
