"""The tests of the laws bite: for each law of CONTRIBUTING.md a mutant that breaks it, under which its test fails.

A mutant is a patch of one function in this process. A law whose test passes under its mutant is not tested.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import test_config
import test_conformance
import test_graphs
import test_laws
import test_runtime
import test_traffic
import torch
from hypothesis import Phase, settings
from runs import Build
from test_conformance import chosen

from esdllm import Catalogue, Engine, EsdllmError, Model, Scope, Window
from esdllm.config import DecodeConfig
from esdllm.planning.keeping import KeepCounts
from esdllm.runtime import graphs
from esdllm.runtime.canvas import Canvas
from esdllm.runtime.gathering import Gathering
from esdllm.runtime.run import Run
from esdllm_backends.attention.sdpa import SdpaAttention
from esdllm_backends.cache.dense import DenseCache
from esdllm_backends.cache.streamed import _Near
from esdllm_models.decoder import Transformer
from esdllm_policies.refreshing import EveryStepRefresh

pytestmark = pytest.mark.no_cover
Patch = pytest.MonkeyPatch


class Mutant(NamedTuple):
    """A law's test, and what must make it fail."""

    law: Callable[..., None]
    mutate: Callable[[Patch], None]
    arguments: tuple[Any, ...] = ()


def around(owner: Any, name: str, change: Callable[..., Any]) -> Callable[[Patch], None]:
    """Return a mutation: `change` is called in a function's place, with the function before its arguments."""

    def mutate(patch: Patch) -> None:
        original = getattr(owner, name)
        patch.setattr(owner, name, lambda *a, **k: change(original, *a, **k))

    return mutate


def one_less(original: Any, *a: Any) -> tuple[int, ...]:
    return tuple(max(1, count - 1) for count in original(*a))


def forget_what_is_skipped(original: Any, cache: DenseCache, write: Any) -> Any:
    read = original(cache, write)
    written = torch.zeros(read.keys.shape[:2], dtype=torch.bool).scatter(1, write.positions, True)
    return read._replace(keys=read.keys * written[:, :, None, None])


def first_row_s_keys(original: Any, backend: SdpaAttention, queries: Any, read: Any) -> torch.Tensor:
    attended: torch.Tensor = original(backend, queries, read._replace(keys=read.keys[:1].expand_as(read.keys)))
    return attended


def first_row_s_facts(original: Any, canvas: Canvas, blocks: torch.Tensor, stop_ids: torch.Tensor) -> Any:
    return original(canvas, blocks, stop_ids)[:1] * len(blocks)


def seeds_by_row(
    original: Any, tokens: torch.Tensor, mask: torch.Tensor, seeds: torch.Tensor, *a: Any, **k: Any
) -> Any:
    return original(tokens, mask, seeds + torch.arange(len(seeds)), *a, **k)


def commit_again(original: Any, canvas: Canvas, positions: Any, tokens: Any, selected: Any) -> None:
    mine = ~canvas.given.roll(-canvas.spec.logit_shift, 1).gather(1, positions) & ~canvas.undecided.gather(1, positions)
    original(canvas, positions, tokens, selected | mine)


def without_bias(original: Any, backend: SdpaAttention, queries: Any, read: Any) -> torch.Tensor:
    attended: torch.Tensor = original(backend, queries, read._replace(bias=None))
    return attended


def never_written_back(original: Any, cache: _Near, *a: Any) -> torch.Tensor:
    transfers, cache._transfers = cache._transfers, Deaf(cache._transfers)
    try:
        part: torch.Tensor = original(cache, *a)
        return part
    finally:
        cache._transfers = transfers


class Deaf:
    """Transfers to a far side that forgets."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return (lambda part, near, index: None) if name == "write_back" else getattr(self._inner, name)


def read_the_device(original: Any, canvas: Canvas) -> torch.Tensor:
    changed: torch.Tensor = original(canvas)
    return changed if float(changed.sum()) >= 0 else ~changed


def another_dtype_at_odd_steps(original: Any, one: Run, step: Any) -> Any:
    inputs = original(one, step)
    return inputs._replace(counts=inputs.counts.int()) if step.moment.step % 2 else inputs


def look_for_plugins(original: Any, *a: Any, **k: Any) -> Any:
    Catalogue.load()
    return original(*a, **k)


def another_norm(original: Any, model: Transformer, x: Any, weight: Any) -> torch.Tensor:
    return torch.nn.functional.rms_norm(x, weight.shape, weight, 0.1)


def attending_beyond_the_row(original: Any, gathering: Gathering, *a: Any, **k: Any) -> None:
    original(gathering, *a, **k)
    if gathering.home.bias is not None:
        gathering.home.bias.zero_()


def shorter(original: Any, config: DecodeConfig) -> dict[str, Any]:
    return {**original(config), "gen_length": 1}


MUTANTS = {
    "a keep ratio of 1 is dual-cache": Mutant(
        test_laws.test_keep_ratio_1_is_the_dual_cache, around(KeepCounts, "of", one_less)
    ),
    "refreshing everything at every step is vanilla": Mutant(
        test_laws.test_refreshing_everything_at_every_step_is_vanilla,
        around(EveryStepRefresh, "scope", lambda original, *a: Scope(Window.CANVAS, refresh=False)),
    ),
    "a skipped position whose input did not change changes nothing": Mutant(
        test_laws.test_skipping_positions_whose_input_did_not_change_changes_nothing,
        around(DenseCache, "update", forget_what_is_skipped),
    ),
    "a row of a batch is the row alone": Mutant(
        test_laws.test_a_row_of_a_batch_is_the_row_alone, around(SdpaAttention, "attend", first_row_s_keys)
    ),
    "a row that comes and goes among others is the row alone": Mutant(
        test_traffic.test_a_row_among_any_others_is_the_row_alone,
        around(Canvas, "facts_of_rows", first_row_s_facts),
    ),
    "a row that shares steps with a longer one is the row alone": Mutant(
        test_traffic.test_rows_of_different_lengths_are_the_rows_alone,
        around(Gathering, "place", attending_beyond_the_row),
    ),
    "permuting rows permutes results": Mutant(test_laws.test_permuted_rows_permute, around(Canvas, "of", seeds_by_row)),
    "a committed token never changes": Mutant(
        test_laws.test_committed_tokens_stay_and_every_mask_is_decided, around(Canvas, "commit", commit_again)
    ),
    "every attention backend equals eager": Mutant(
        test_runtime.test_eager_attention_gives_sdpa_s_tokens,
        around(SdpaAttention, "attend", without_bias),
        ("llada-0", "es-dllm"),
    ),
    "every store that keeps everything equals dense": Mutant(
        test_graphs.test_a_store_that_cannot_be_called_in_a_compiled_step_is_not_recorded,
        around(_Near, "write", never_written_back),
    ),
    "a step reads nothing from the device": Mutant(
        test_runtime.test_a_whole_generation_reads_nothing_from_the_device,
        around(Canvas, "changed", read_the_device),
        ("llada-0", "es-dllm"),
    ),
    "a step compiles to as many graphs as there are plans": Mutant(
        test_runtime.test_the_compiled_step_is_one_graph_a_plan_with_eager_s_tokens,
        around(Run, "_inputs", another_dtype_at_odd_steps),
        ("llada-shallow", "es-dllm", {}),
    ),
    "no hook during generation": Mutant(
        test_runtime.test_no_hook_is_called_while_generating,
        around(Engine, "generate", look_for_plugins),
        ("es-dllm",),
    ),
    "recorded steps decode what steps decode": Mutant(
        test_graphs.test_recorded_steps_decode_what_steps_decode,
        around(graphs, "_fill", lambda original, *a: None),
        ("llada-0", "es-dllm"),
    ),
    "a configuration comes back equal": Mutant(
        test_config.test_a_configuration_goes_through_a_dict_and_back, around(DecodeConfig, "to_dict", shorter)
    ),
    "equal to recorded runs of the public implementations": Mutant(
        test_conformance.test_cases_are_equal_token_for_token,
        around(Transformer, "_normed", another_norm),
        ("llada-0",),
    ),
}
"""By the law."""


@pytest.mark.parametrize("law", MUTANTS)
def test_a_mutant_fails_its_law_s_test(
    law: str,
    build: Build,
    catalogue: Catalogue,
    shape_only: dict[str, Model],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutant = MUTANTS[law]
    monkeypatch.setattr(test_conformance, "chosen", lambda model: chosen(model)[:2])
    known = {"build": build, "catalogue": catalogue, "shape_only": shape_only, "tmp_path": tmp_path}
    wanted = [name for name in mutant.law.__code__.co_varnames[: mutant.law.__code__.co_argcount] if name in known]
    quick = getattr(mutant.law, "_hypothesis_internal_use_settings", None)
    if quick is not None:  # the first example that fails will do
        wanted = []
        only = settings(quick, max_examples=200, phases=[Phase.generate], database=None)
        monkeypatch.setattr(mutant.law, "_hypothesis_internal_use_settings", only)
    mutant.mutate(monkeypatch)
    with pytest.raises((AssertionError, NotImplementedError, RuntimeError, EsdllmError)):
        mutant.law(*mutant.arguments, **{name: known[name] for name in wanted})
