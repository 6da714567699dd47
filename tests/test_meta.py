"""What an operator gives on the meta device is the same where forms are remembered, and a read raises there as ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from esdllm.testing.meta import KnownShapes

META = torch.device("meta")


def made(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


WIDE, NARROW, WHOLE = made(3, 4), made(3, 4, dtype=torch.bfloat16), made(3, 4, dtype=torch.int64)
ALIKE: list[list[Callable[[], Tensor]]] = [
    [lambda: WIDE + WIDE, lambda: NARROW + NARROW, lambda: WIDE + NARROW, lambda: NARROW + WHOLE],
    [lambda: WIDE * 2, lambda: WHOLE * 2, lambda: WHOLE * 2.0, lambda: WHOLE * True],
    [lambda: WIDE.exp(), lambda: made(4, 3).t().exp(), lambda: made(3, 4, 2)[..., 0].exp()],
    [lambda: WIDE.sum(0), lambda: WIDE.sum(1), lambda: WIDE.sum(1, keepdim=True), lambda: WIDE.sum()],
    [lambda: WIDE.sum(dtype=torch.float64), lambda: WIDE.sum(dtype=torch.float32)],
    [lambda: torch.cat([WIDE, WIDE]), lambda: torch.cat([WIDE, WIDE], 1), lambda: torch.cat([WIDE, WIDE, WIDE])],
    [lambda: torch.arange(5, device=META), lambda: torch.arange(5.0, device=META), lambda: torch.arange(5)],
    [lambda: WIDE[WHOLE[:, 0]], lambda: WIDE[:, WHOLE[0]], lambda: WIDE[None, WHOLE[0]]],
    [lambda: WIDE + torch.ones(()), lambda: WIDE + torch.ones((), dtype=torch.float64), lambda: torch.ones(3) + 1],
    [lambda: torch.where(WIDE > 0, WIDE, 0.0), lambda: torch.where(WIDE > 0, WIDE, NARROW)],
    [lambda: WIDE.topk(2).indices, lambda: WIDE.topk(3).values, lambda: WIDE.max(1).indices, lambda: WIDE.max()],
    [lambda: WIDE.to(torch.bfloat16), lambda: WIDE.to(torch.float32), lambda: WIDE.double(), lambda: WIDE.cpu()],
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("calls", ALIKE)
def test_an_operator_called_again_gives_what_it_gives(calls: list[Callable[[], Tensor]]) -> None:
    def form(call: Callable[[], Tensor]) -> Any:
        try:
            found = call()
        except (NotImplementedError, RuntimeError) as error:
            return type(error)
        return found.shape, found.stride(), found.dtype, found.device

    expected = [form(call) for call in calls]
    with KnownShapes():
        assert [form(call) for _ in range(3) for call in calls] == 3 * expected


@pytest.mark.parametrize(
    "read",
    [
        lambda: WIDE.sum().item(),
        lambda: bool((WIDE > 0).any()),
        lambda: WIDE.nonzero(),
        lambda: WIDE[WIDE > 0],
        lambda: WIDE.tolist(),
        lambda: torch.equal(WIDE, WIDE),
        lambda: torch.repeat_interleave(WHOLE[0]),
    ],
)
def test_a_read_raises_however_often_it_is_tried(read: Callable[[], object]) -> None:
    with KnownShapes():
        for _ in range(3):
            with pytest.raises((NotImplementedError, RuntimeError)):
                read()


def test_what_is_written_in_place_is_the_tensor_itself_and_a_view_is_of_it() -> None:
    with KnownShapes():
        for _ in range(2):
            x = made(3, 4)
            assert x.add_(1) is x
            assert x.view(12)._base is x
            assert (x + 1)._base is None


def test_a_tensor_of_a_class_of_its_own_decides_what_it_gives() -> None:
    class Own(Tensor):
        pass

    with KnownShapes():
        for _ in range(2):
            assert type(made(2).as_subclass(Own) + 1) is Own
            assert type(made(2) + 1) is Tensor
