"""The laws of recording CUDA graphs, by what is asked of torch: whose device, whose stream, whose memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import attrs
import pytest
import torch

from esdllm.runtime.graphs import CudaCapture, current

SECOND = torch.device("cuda:1")


@attrs.define(eq=False)
class Stream:
    """A stream that notes for whom it waits."""

    name: str
    waited: list[str] = attrs.field(factory=list)

    def wait_stream(self, other: Stream) -> None:
        self.waited.append(other.name)


class Gpu:
    """Stands for torch.cuda: notes on which device and stream work is done, and how graphs are recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device = torch.device("cuda:0")
        self.main = self.stream = Stream("main")
        self.made: list[Stream] = []
        self.pools = 0
        self.graphs: list[dict[str, Any]] = []
        self.replayed = 0
        gpu = self

        class Graph:
            def replay(self) -> None:
                gpu.replayed += 1

        stands = {"device": self.on, "Stream": self.new, "current_stream": lambda: self.stream, "stream": self.using}
        stands |= {"graph_pool_handle": self.pool, "CUDAGraph": Graph, "graph": self.recording}
        for name, value in stands.items():
            monkeypatch.setattr(torch.cuda, name, value)

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        before, self.device = self.device, device
        yield
        self.device = before

    @contextmanager
    def using(self, stream: Stream) -> Iterator[None]:
        before, self.stream = self.stream, stream
        yield
        self.stream = before

    @contextmanager
    def recording(self, graph: Any, *, pool: int, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        self.graphs.append({"pool": pool, "mode": capture_error_mode, "device": self.device})
        with self.using(stream):
            yield

    def new(self) -> Stream:
        self.made.append(Stream(f"own on {self.device}"))
        return self.made[-1]

    def pool(self) -> int:
        self.pools += 1
        return self.pools


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


def test_work_is_prepared_and_recorded_on_one_stream_of_the_model_s_own_device(gpu: Gpu) -> None:
    seen: list[tuple[str, str]] = []

    def work() -> None:
        seen.append((str(gpu.device), gpu.stream.name))

    capture = CudaCapture(SECOND)
    for _ in range(2):
        capture.prepare(work)
    capture.record(work)
    assert seen == [("cuda:1", "own on cuda:1")] * 3
    assert len(gpu.made) == 1
    assert gpu.device == torch.device("cuda:0")
    assert gpu.stream is gpu.main


def test_what_is_prepared_waits_for_what_was_asked_before_and_what_comes_after_waits_for_it(gpu: Gpu) -> None:
    CudaCapture(SECOND).prepare(lambda: None)
    (own,) = gpu.made
    assert own.waited == ["main"]
    assert gpu.main.waited == [own.name]


def test_other_threads_may_allocate_while_a_step_is_recorded(gpu: Gpu) -> None:
    capture = CudaCapture(SECOND)
    capture.prepare(lambda: None)
    replay = capture.record(lambda: None)
    assert gpu.graphs == [{"pool": 1, "mode": "thread_local", "device": SECOND}]
    replay()
    assert gpu.replayed == 1


def test_graphs_share_their_memory_but_with_those_that_were_let_go_of(gpu: Gpu) -> None:
    """A pool whose graphs are all gone is none that new ones could be recorded in."""
    capture = CudaCapture(SECOND)
    capture.prepare(lambda: None)
    for _ in range(2):
        capture.record(lambda: None)
    capture.forget()
    capture.record(lambda: None)
    assert [graph["pool"] for graph in gpu.graphs] == [1, 1, 2]


@pytest.mark.parametrize("device", ["cpu", "meta", "cuda", "cuda:1"])
def test_a_cuda_device_is_made_the_current_one_and_others_are_left(device: str, gpu: Gpu) -> None:
    named = torch.device(device)
    entered: AbstractContextManager[Any] = current(named)
    assert isinstance(entered, nullcontext) is (named.type != "cuda")
    with entered:
        assert gpu.device == (named if named.type == "cuda" else torch.device("cuda:0"))
