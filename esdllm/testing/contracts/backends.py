"""The check of attention backends: they equal the formula, whatever is left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from unittest import SkipTest

import attrs
import torch
from torch import Tensor

from esdllm.interfaces import AttentionBackend
from esdllm.plan import BlockCausal
from esdllm.plugins.capabilities import attention_problems
from esdllm.runtime.plain import plain_attention
from esdllm.runtime.samples import SPEC, key_value
from esdllm.testing.contracts.generation import check_generation
from esdllm.testing.contracts.laws import close, kernel_laws, law, member_laws, pure, row_laws, tensor_law
from esdllm.views import KeyValue

__all__ = ["check_attention_backend"]


def check_attention_backend(
    backend: AttentionBackend,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    tolerance: float = 1e-4,
) -> None:
    """Check an attention backend, by itself and in whole generations of a tiny model.

    It gives softmax(q k^T / sqrt(D)) v within `tolerance`, computed here in float64: for one and several query heads a key
    head, for one query and many, for keys that lie by position and by head, with padding and with any keys left out, which
    are never read; in the dtype of the queries; a row's as for the row alone. Of one that serves block-causal models too,
    each query reads the blocks up to its own. And what every kernel holds to.

    Raises:
        AssertionError: a law fails; says which.
        unittest.SkipTest: it cannot serve on `device` in `dtype`; gives its reasons. pytest counts the test as skipped.
    """
    who, where = member_laws("attention", backend), torch.device(device)
    rank = backend.rank
    law(rank is None or isinstance(rank, int), f"{who}: rank = {rank!r}; give a number, or None to serve by name only")
    spec = attrs.evolve(SPEC, head_dim=16)
    problems = backend.problems(spec, where, dtype)
    plain = isinstance(problems, list) and all(isinstance(reason, str) for reason in problems)
    law(plain, f"{who}.problems gave {problems!r}; give a list of sentences, empty where it can serve")
    if problems:
        raise SkipTest(f"{who} cannot serve on {device} in {dtype}: {'; '.join(problems)}")

    on_meta = not backend.problems(spec, torch.device("meta"), dtype)
    serves_blocks = not attention_problems(backend, attrs.evolve(spec, attention=BlockCausal(4)), where, dtype)
    for case in (*_cases(), *(_cases_of_blocks() if serves_blocks else ())):
        case = _moved(case, where, dtype)
        _formula_laws(who, backend, case, tolerance)
        if on_meta:
            kernel_laws(who, lambda one: backend.attend(one.queries, one.read), case)
        row_laws(who, lambda one: backend.attend(one.queries, one.read), case, tolerance)
    if where.type == "cpu":
        check_generation(attention=backend)


class _Case(NamedTuple):
    """Queries, and what they read."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    bias: Tensor | None
    padding: Tensor | None
    query_blocks: Tensor | None = None
    key_blocks: Tensor | None = None

    @property
    def read(self) -> KeyValue:
        return KeyValue(*self[1:])


def _cases() -> Iterator[_Case]:
    """Yield grouped and ungrouped queries, one and many, with padding, with any keys left out, and with nothing left out.

    Each with keys and values laid out by position, and by head.
    """
    for queries, read in (
        key_value(),
        key_value(1, window=1, groups=1, each=4),
        key_value(2, window=21, groups=4, each=1),
        key_value(3, padding=(0, 6, 20)),
        key_value(4, holes=True),
        key_value(5, rows=3, keys=1),
    ):
        yield (case := _Case(queries, *read))
        keys, values = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (case.keys, case.values))
        yield case._replace(keys=keys, values=values)


def _cases_of_blocks() -> Iterator[_Case]:
    """Yield queries of several blocks: one and many heads a key head, with padding, with keys left out, and causally."""
    for queries, read in (
        key_value(6, window=8, block=4),
        key_value(7, window=21, groups=4, each=1, block=8),
        key_value(8, window=9, padding=(0, 6, 11), block=4),
        key_value(9, window=5, groups=1, each=4, block=1),
        key_value(10, window=21, padding=(3, 0, 2), block=5),
    ):
        yield _Case(queries, *read)


def _told(padding: Tensor | None) -> str:
    return "none" if padding is None else str(padding.tolist())


def _moved(case: _Case, device: torch.device, dtype: torch.dtype) -> _Case:
    bias = None if case.bias is None else case.bias.to(device, dtype)
    moved = {name: getattr(case, name).to(device, dtype) for name in ("queries", "keys", "values")}
    numbers = {name: getattr(case, name) for name in ("padding", "query_blocks", "key_blocks")}
    numbers = {name: None if x is None else x.to(device) for name, x in numbers.items()}
    return case._replace(**moved, bias=bias, **numbers)


def _formula_laws(who: str, backend: AttentionBackend, case: _Case, tolerance: float) -> None:
    found = pure(who, lambda one: backend.attend(one.queries, one.read))(case)
    tensor_law(who, "attention", found, case.queries.shape, case.queries.dtype)
    exact = case._replace(**{x: getattr(case, x).double() for x in ("queries", "keys", "values")})
    expected = plain_attention(exact.queries, exact.read)
    off = float((found.double() - expected).abs().max())
    asked = f"queries {tuple(case.queries.shape)} over keys {tuple(case.keys.shape)}, padding {_told(case.padding)}"
    law(
        off <= tolerance,
        f"{who} is off by {off:.3g} from softmax(q k^T / sqrt(D)) v, more than {tolerance}, for {asked}",
    )
    if case.bias is None:
        return
    out = (case.bias != 0)[..., None, None]
    loud = case._replace(keys=case.keys.masked_fill(out, 1e4), values=case.values.masked_fill(out, -1e4))
    unread = close(backend.attend(loud.queries, loud.read), found, tolerance)
    law(unread, f"{who} reads keys or values that are left out, for {asked}; their bias is -inf")
