"""A component that misbehaves is named, with what it did: at build where tiny tensors show it, at run time where it raises."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from helpers import CASES, offers
from torch import Tensor

from esdllm import (
    CacheShape,
    CacheWrite,
    Candidates,
    Catalogue,
    Engine,
    ImportanceView,
    KeyValue,
    Model,
    PluginError,
    SampleView,
    UnmaskingView,
    load_model,
)
from esdllm.runtime.rehearsal import rehearse
from esdllm_backends.attention.eager import EagerAttention
from esdllm_backends.cache.dense import DenseCache, DenseStore
from esdllm_policies.importance import ConfidenceScorer, MixScorer, WeightedScorer
from esdllm_policies.parallel import CreditUnmasking
from esdllm_policies.refreshing import DualCacheRefresh
from esdllm_policies.sampling import GumbelSampler
from esdllm_policies.unmasking import TopKUnmasking

NAN = float("nan")
ONLY_LONG = 25
"""canvases of more columns are runs; those of rehearsals have fewer"""
HOOKS = {
    "importance": "esdllm_importance_scorers",
    "sampler": "esdllm_token_samplers",
    "unmasking": "esdllm_unmasking_policies",
    "attention": "esdllm_attention_backends",
    "cache": "esdllm_cache_stores",
    "skip": "esdllm_skip_schedules",
    "refresh": "esdllm_refresh_policies",
    "observers": "esdllm_step_observers",
}


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(CASES / "llada-0", "cpu", "float32")


def built(model: Model, section: str, component: type, **over: Any) -> Engine:
    """Return an engine with a plugin's component, whose name is `bad`."""
    catalogue = Catalogue.load({"made-up": offers(HOOKS[section], {"bad": component})})
    chosen: Any = ["bad"] if section == "observers" else "bad"
    settings = {"gen_length": 12, "block_length": 6, "skip": {"keep": [[0.0, 0.5]]}, section: chosen, **over}
    return Engine.build(model, catalogue.configure("es-dllm", settings=settings), catalogue)


def broken(base: type, method: str, does: Callable[..., Any]) -> type:
    """Return a class of components whose `method` does as told; it gets the right method first."""
    right = getattr(base, method)
    return attrs.frozen(type("Broken", (base,), {method: lambda self, *given: does(right, self, *given)}))


def scorer(does: Callable[[ImportanceView], Any]) -> type:
    return broken(ConfidenceScorer, "score", lambda right, self, view: does(view))


def sampler(does: Callable[[Candidates, SampleView], Any]) -> type:
    return broken(GumbelSampler, "sample", lambda right, self, view: does(right(self, view), view))


def policy(does: Callable[[Tensor, UnmaskingView], Any]) -> type:
    return broken(TopKUnmasking, "select", lambda right, self, view: does(right(self, view), view))


def memory(does: Callable[[UnmaskingView], Any]) -> type:
    return broken(CreditUnmasking, "remember", lambda right, self, view: does(view))


def backend(does: Callable[[Tensor, Tensor, KeyValue], Any]) -> type:
    return broken(
        EagerAttention, "attend", lambda right, self, queries, read: does(right(self, queries, read), queries, read)
    )


def store(method: str, does: Callable[..., Any]) -> type:
    cache = type(
        "BrokenCache", (DenseCache,), {method: lambda self, *given: does(getattr(DenseCache, method), self, *given)}
    )
    return broken(DenseStore, "allocate", lambda right, self, shape: cache(shape))


def raising(*given: Any) -> Any:
    raise ZeroDivisionError("a share of nothing")


def in_place(x: Tensor) -> Tensor:
    return x.add_(1)


FAULTS: dict[str, tuple[str, type, str]] = {
    "a score raises": (
        "importance",
        scorer(raising),
        "failed in a rehearsal on tiny tensors: ZeroDivisionError: a share of nothing",
    ),
    "a score of one row": (
        "importance",
        scorer(lambda v: v.confidence[:1]),
        "returned the score of (1, 9) torch.float32; it must be (2, 9)",
    ),
    "a score by row": (
        "importance",
        scorer(lambda v: v.confidence.mean(1)),
        "returned the score of (2,) torch.float32",
    ),
    "a score with features": ("importance", scorer(lambda v: v.confidence.unsqueeze(2)), "the score of (2, 9, 1)"),
    "a score in half": (
        "importance",
        scorer(lambda v: v.confidence.half()),
        "torch.float16; it must be (2, 9) torch.float32",
    ),
    "a score of bools": ("importance", scorer(lambda v: v.undecided), "torch.bool; it must be (2, 9) torch.float32"),
    "no score": ("importance", scorer(lambda v: None), "returned NoneType as the score; return a tensor (2, 9)"),
    "a list of scores": ("importance", scorer(lambda v: v.confidence.tolist()), "returned list as the score"),
    "a score of NaN": ("importance", scorer(lambda v: v.confidence * NAN), "scored NaN: [[nan"),
    "one NaN": (
        "importance",
        scorer(lambda v: v.confidence.masked_fill(v.positions == v.positions[0, 0], NAN)),
        "scored NaN",
    ),
    "a score in place": (
        "importance",
        scorer(lambda v: in_place(v.confidence)),
        "changes its input 'confidence'; a kernel is a pure function",
    ),
    "a score that marks": (
        "importance",
        scorer(lambda v: v.undecided.fill_(True).float()),
        "changes its input 'undecided'",
    ),
    "a score that normalises": (
        "importance",
        scorer(lambda v: (v.x.div_(9), v.confidence)[1]),
        "changes its input 'x'",
    ),
    "a sampler raises": ("sampler", sampler(raising), "failed in a rehearsal on tiny tensors: ZeroDivisionError"),
    "tokens in int32": (
        "sampler",
        sampler(lambda f, v: f._replace(tokens=f.tokens.int())),
        "returned tokens of (2, 2) torch.int32; it must be (2, 2) torch.int64",
    ),
    "tokens by row": ("sampler", sampler(lambda f, v: f._replace(tokens=f.tokens[:, 0])), "returned tokens of (2,)"),
    "only tokens": (
        "sampler",
        sampler(lambda f, v: f.tokens),
        "returned Tensor; return Candidates(tokens, confidence)",
    ),
    "confidence in double": (
        "sampler",
        sampler(lambda f, v: f._replace(confidence=f.confidence.double())),
        "returned confidence of (2, 2) torch.float64",
    ),
    "a token too large": (
        "sampler",
        sampler(lambda f, v: f._replace(tokens=f.tokens * 0 + 256)),
        "chose [[256, 256], [256, 256]] of a vocabulary of 256",
    ),
    "a token below 0": ("sampler", sampler(lambda f, v: f._replace(tokens=f.tokens * 0 - 1)), "of a vocabulary of 256"),
    "the mask": (
        "sampler",
        sampler(lambda f, v: f._replace(tokens=f.tokens * 0 + 254)),
        "chose a token whose logit is -inf",
    ),
    "confidence NaN": (
        "sampler",
        sampler(lambda f, v: f._replace(confidence=f.confidence * NAN)),
        "gave confidence [[nan",
    ),
    "confidence above 1": (
        "sampler",
        sampler(lambda f, v: f._replace(confidence=f.confidence + 1)),
        "a probability is a number from 0 to 1",
    ),
    "log probabilities": (
        "sampler",
        sampler(lambda f, v: f._replace(confidence=f.confidence.log())),
        "a probability is a number from 0 to 1",
    ),
    "logits in place": ("sampler", sampler(lambda f, v: (v.raw.mul_(0.5), f)[1]), "changes its input 'raw'"),
    "a policy raises": ("unmasking", policy(raising), "failed in a rehearsal on tiny tensors: ZeroDivisionError"),
    "indices": (
        "unmasking",
        policy(lambda c, v: c.long()),
        "returned the selection of (2, 3) torch.int64; it must be (2, 3) torch.bool",
    ),
    "one row selected": ("unmasking", policy(lambda c, v: c[0]), "returned the selection of (3,)"),
    "all selected": (
        "unmasking",
        policy(lambda c, v: torch.ones_like(c)),
        "selected [[0, 2], [1, 1]], (row, index), which are not eligible",
    ),
    "a selection in place": (
        "unmasking",
        policy(lambda c, v: (v.eligible.logical_and_(c), c)[1]),
        "changes its input 'eligible'",
    ),
    "a memory in place": ("unmasking", memory(lambda v: in_place(v.memory)), "changes its input 'memory'"),
    "a memory of NaN": ("unmasking", memory(lambda v: v.memory * NAN), "remembers NaN"),
    "attention raises": ("attention", backend(raising), "failed in a rehearsal on tiny tensors: ZeroDivisionError"),
    "attention flat": ("attention", backend(lambda f, q, r: f.flatten(2)), "returned attention of (2, 5, 64)"),
    "attention in double": ("attention", backend(lambda f, q, r: f.double()), "torch.float64; it must be"),
    "attention NaN": ("attention", backend(lambda f, q, r: f * NAN), "gave attention that is not finite"),
    "attention in place": ("attention", backend(lambda f, q, r: (q.mul_(2), f)[1]), "changes its input"),
    "keys in place": ("attention", backend(lambda f, q, r: (r.keys.mul_(2), f)[1]), "changes its input"),
    "a reset that does nothing": (
        "cache",
        store("reset", lambda right, self: None),
        "resets too little: layer 0 of a cache that was reset shows what was written before",
    ),
    "a reset of keys alone": (
        "cache",
        store("reset", lambda right, self: [held.reset() for held in self.keys]),
        "resets too little",
    ),
    "a reset that forgets to forget": (
        "cache",
        store("reset", lambda right, self: [held.reset() for held in (*self.keys, *self.values)]),
        "resets too little: layer 1",
    ),
    "a write in place": (
        "cache",
        store("update", lambda right, self, write: (right(self, write), write.keys.zero_())[0]),
        "changes its input 'keys'; it belongs to the step",
    ),
    "a cache raises": ("cache", store("update", raising), "failed in a rehearsal on tiny tensors: ZeroDivisionError"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_tiny_tensors_show_is_named_at_build(model: Model, name: str) -> None:
    section, component, said = FAULTS[name]
    with pytest.raises(PluginError, match=rf"^{section} 'bad' \(\S+Broken\) .*{re.escape(said)}"):
        built(model, section, component)


def test_our_own_components_are_rehearsed_without_a_word(model: Model) -> None:
    for preset in ("vanilla", "es-dllm", "es-dllm-parallel"):
        rehearse(Engine.build(model, Catalogue.load().configure(preset)).components, model.adapter)


def test_a_component_within_another_is_found(model: Model) -> None:
    mix = broken(MixScorer, "score", lambda right, self, view: in_place(view.confidence))
    with pytest.raises(PluginError, match="changes its input 'confidence'"):
        built(model, "importance", mix, importance={"name": "bad", "parts": [{"name": "confidence"}]})
    assert WeightedScorer  # what `mix` is made of


# at run time


def later(base: type, method: str, size: Callable[..., int], what: BaseException) -> type:
    """Return a class whose method raises in a run, and not in a rehearsal."""

    def does(right: Any, self: Any, *given: Any) -> Any:
        if size(*given) > ONLY_LONG:
            raise what
        return right(self, *given)

    return broken(base, method, does)


def canvas(view: Any) -> int:
    return 99 if int(view.positions.max()) > ONLY_LONG else 0


OFTEN: dict[str, tuple[str, type]] = {
    "importance": ("importance", later(ConfidenceScorer, "score", canvas, IndexError("far out"))),
    "sampler": ("sampler", later(GumbelSampler, "sample", canvas, IndexError("far out"))),
    "unmasking": ("unmasking", later(TopKUnmasking, "select", canvas, IndexError("far out"))),
    "attention": (
        "attention",
        later(EagerAttention, "attend", lambda q, read: read.keys.shape[1], IndexError("far out")),
    ),
    "cache": ("cache", later(DenseStore, "allocate", lambda shape: shape.length, IndexError("far out"))),
    "refresh": ("refresh", later(DualCacheRefresh, "scope", lambda moment: 99 * moment.step, IndexError("far out"))),
}
PROMPT = [list(range(30))]


@pytest.mark.parametrize("section", [name for name in OFTEN if name != "refresh"])
def test_what_a_component_raises_in_a_run_names_it(model: Model, section: str) -> None:
    engine = built(model, *OFTEN[section])
    with pytest.raises(PluginError, match=rf"^{section} 'bad' \(\S+Broken\) failed: IndexError: far out") as raised:
        engine.generate(PROMPT)
    assert isinstance(raised.value.__cause__, IndexError)


def test_what_a_planner_raises_in_its_rehearsal_names_it(model: Model) -> None:
    with pytest.raises(PluginError, match=r"^refresh 'bad' \(\S+Broken\) failed: IndexError: far out"):
        built(model, *OFTEN["refresh"])


def test_a_cache_that_fails_in_a_step_is_named(model: Model) -> None:
    def update(right: Any, self: DenseCache, write: CacheWrite) -> KeyValue:
        if self._shape.length > ONLY_LONG:
            raise KeyError("a lost block")
        found: KeyValue = right(self, write)
        return found

    engine = built(model, "cache", store("update", update))
    with pytest.raises(PluginError, match=r"^cache 'bad' \(\S+BrokenCache\) failed: KeyError: 'a lost block'"):
        engine.generate(PROMPT)


@attrs.frozen
class Clumsy:
    """An observer that fails at the first step."""

    def start(this, tokens: Tensor, spec: Any) -> None:  # noqa: N805
        """Take the canvas."""

    def step(this, record: Any) -> None:  # noqa: N805
        helper(this)

    def end(this) -> None:  # noqa: N805
        """There is nothing to close."""


def helper(observer: Any) -> None:
    raise LookupError("no such place")


def test_an_observer_of_the_configuration_is_named_and_one_s_own_is_not(model: Model) -> None:
    with pytest.raises(PluginError, match=r"^observers 'bad' \(\S+Clumsy\) failed: LookupError: no such place"):
        built(model, "observers", Clumsy).generate(PROMPT)
    with pytest.raises(LookupError, match="no such place"):
        built(model, "importance", ConfidenceScorer).generate(PROMPT, observers=[Clumsy()])


def test_a_model_that_fails_is_named(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = built(model, "importance", ConfidenceScorer)

    def mix(self: Any, layer: int, hidden: Tensor, attended: Tensor) -> Tensor:
        raise ArithmeticError("no such sum")

    monkeypatch.setattr(type(model.adapter), "mix", mix)
    with pytest.raises(PluginError, match=r"^model 'llada' \(\S+\) failed: ArithmeticError: no such sum"):
        engine.generate(PROMPT)


def test_who_gives_what_the_next_cannot_use_is_named_in_its_place(model: Model) -> None:
    engine = built(model, "importance", ConfidenceScorer)
    short = scorer(lambda view: view.confidence[:, 1:])()
    engine.components = attrs.evolve(engine.components, importance=short)
    with pytest.raises(PluginError, match=r"^importance 'bad' \(\S+Broken\) returned the score of \(2, 8\)") as raised:
        engine.generate(PROMPT)
    assert isinstance(raised.value.__cause__, (IndexError, RuntimeError))


PASSING = {
    "a Ctrl-C": KeyboardInterrupt(),
    "an exit": SystemExit(3),
    "no memory": MemoryError(),
    "no memory of a device": torch.OutOfMemoryError("8 GiB"),
    "no memory in torch's words": RuntimeError("DefaultCPUAllocator: you tried to allocate 9 bytes"),
    "a full disk": OSError(28, "No space left on device"),
    "an error of ours": PluginError("as it is"),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_no_component_is_to_blame_for_passes(model: Model, name: str) -> None:
    engine = built(model, "sampler", later(GumbelSampler, "sample", canvas, PASSING[name]))
    with pytest.raises(type(PASSING[name])) as raised:
        engine.generate(PROMPT)
    assert raised.value is PASSING[name]


class Panic(BaseException):
    """What Python sees of a panic in Rust."""


def test_a_panic_is_named(model: Model) -> None:
    engine = built(model, "sampler", later(GumbelSampler, "sample", canvas, Panic("unwrap on None")))
    with pytest.raises(PluginError, match=r"^sampler 'bad' \(\S+\) failed: Panic: unwrap on None"):
        engine.generate(PROMPT)


def test_an_engine_goes_on_after_a_component_failed(model: Model) -> None:
    engine = built(model, "sampler", later(GumbelSampler, "sample", canvas, ValueError("once")))
    with pytest.raises(PluginError):
        engine.generate(PROMPT)
    assert engine.generate([[1, 2, 3]]).committed == 12


def test_nothing_is_rehearsed_where_there_are_no_values(model: Model) -> None:
    shape = CacheShape(1, 1, 1, 1, 1, 1, (), torch.float32, torch.device("meta"))
    assert DenseStore().problems(shape) == []
    twin = load_model(CASES / "llada-0", "meta", "float32")
    built(twin, "importance", scorer(lambda view: view.confidence.mean(1)))
