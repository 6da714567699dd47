"""The disk store: what dense gives, from a file that ends with its process, and every fault told."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from cache_runs import SHAPE, Step, full_step, play, runs
from helpers import CASES
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples

from esdllm import CacheShape, Catalogue, Engine, EsdllmError, Model, UnavailableError
from esdllm_backends.cache.dense import DenseStore
from esdllm_backends.cache.disk import DiskStore
from esdllm_backends.cache.streamed import nbytes

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
SETTINGS = {
    "gen_length": 16,
    "block_length": 8,
    "early_stop": False,
    "refresh": {"prompt_refresh": 8, "block_refresh": 4},
}
RUN = f"""
import sys, esdllm
from pathlib import Path

class Told:
    def start(self, tokens, spec): pass
    def step(self, record):
        print("step", flush=True)
        if record.moment.step == 9 and sys.argv[3] == "hang":
            sys.stdin.read()
    def end(self): pass

catalogue = esdllm.Catalogue.load()
model = esdllm.load_model(Path(sys.argv[1]), "cpu", catalogue=catalogue)
over = {{**{SETTINGS!r}, "cache": {{"name": "disk", "folder": sys.argv[2]}}}}
engine = esdllm.Engine.build(model, catalogue.configure("es-dllm", settings=over), catalogue)
print(engine.generate([{PROMPT!r}], observers=[Told()]).tokens.tolist())
"""


def start(folder: Path, how: str = "") -> subprocess.Popen[str]:
    """Return a process that decodes with its cache in `folder`; told to hang, it stops in the middle and waits."""
    command = [sys.executable, "-c", RUN, str(CASES / "llada-0"), str(folder), how]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def open_files(folder: Path, process: int | str = "self") -> list[Path]:
    """Return the descriptors of a folder's files, with a name or without, that a process has open."""
    return [link for link in Path(f"/proc/{process}/fd").iterdir() if _target(link).startswith(f"{folder}/")]


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""  # closed meanwhile, as the listing's own is


@pytest.fixture
def engine(llada: Model, catalogue: Catalogue, tmp_path: Path) -> Engine:
    return build(llada, catalogue, {"name": "disk", "folder": str(tmp_path)})


def build(model: Model, catalogue: Catalogue, cache: Any) -> Engine:
    return Engine.build(model, catalogue.configure("es-dllm", settings={**SETTINGS, "cache": cache}), catalogue)


@pytest.fixture
def expected(llada: Model, catalogue: Catalogue) -> list[list[int]]:
    """What dense gives."""
    tokens: list[list[int]] = build(llada, catalogue, "dense").generate([PROMPT]).tokens.tolist()
    return tokens


@given(made=runs(), share=st.none() | st.floats(0.0, 1.2))
@examples(60)
def test_whatever_a_run_writes_and_reads_a_cache_on_disk_gives_what_dense_gives(
    made: tuple[CacheShape, list[Step | None]], share: float | None
) -> None:
    shape, script = made
    bound = None if share is None else 1 + int(share * nbytes(shape, range(shape.n_layers)) * shape.n_layers)
    cache = DiskStore(memory_bytes=bound).allocate(shape)
    dense = list(play(DenseStore().allocate(shape), shape, script))
    found = list(play(cache, shape, script))
    cache.close()
    assert len(found) == len(dense)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, dense, strict=True))


# ------------------------------------------------------------------------------------------------ a file's beginning


def test_the_file_has_no_name_and_all_its_room_from_the_start(tmp_path: Path) -> None:
    store = DiskStore(str(tmp_path))
    cache = store.allocate(SHAPE)
    assert list(tmp_path.iterdir()) == []
    (file,) = open_files(tmp_path)
    found, predicted = file.stat(), store.memory(SHAPE)
    assert found.st_size == predicted.disk > 0
    assert found.st_blocks * 512 >= found.st_size
    cache.close()


def test_a_cache_that_memory_holds_takes_no_disk(tmp_path: Path) -> None:
    store = DiskStore(str(tmp_path), memory_bytes=10**6)
    assert store.memory(SHAPE).disk == 0
    assert store.problems(SHAPE) == []
    assert len(list(play(store.allocate(SHAPE), SHAPE, [full_step(0)]))) == 2 * 5 + 2


@pytest.mark.parametrize(
    ("options", "changed", "reason"),
    [
        ({"folder": "/no/such"}, {}, "there is no folder /no/such; make it, or name another as cache.folder"),
        ({"folder": __file__}, {}, f"there is no folder {__file__}; make it, or name another as cache.folder"),
        (
            {"memory_bytes": 100},
            {},
            "memory_bytes is 100, but the buffers of two layers take 4,496 bytes; allow that, or leave it out",
        ),
        (
            {},
            {"compiled": True},
            "it moves layers while a step runs, which a compiled step cannot; set compile = false",
        ),
        ({}, {"device": torch.device("cuda:1")}, "the model is on cuda:1; it serves models on the CPU"),
    ],
)
def test_where_a_file_cannot_serve_the_reason_is_told(options: Any, changed: Any, reason: str) -> None:
    assert DiskStore(**options).problems(evolve(SHAPE, **changed)) == [reason]


def test_too_little_free_space_is_refused_with_both_numbers(tmp_path: Path) -> None:
    huge = evolve(SHAPE, length=10**12)
    (reason,) = DiskStore(str(tmp_path)).problems(huge)
    needed = DiskStore().memory(huge).disk
    assert reason.startswith(f"the cache takes {needed:,} bytes of disk, and {tmp_path} has ")
    free = int(reason.split(" has ")[1].split(";")[0].replace(",", ""))
    assert 0 < free < needed


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_writable_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert DiskStore(str(tmp_path)).problems(SHAPE) == [
        f"the folder {tmp_path} is not writable; name another as cache.folder"
    ]


def test_a_folder_in_which_no_file_can_be_made_is_an_error_that_names_it() -> None:
    with pytest.raises(UnavailableError, match=r"cannot make a file in /proc: .+; name another as cache\.folder"):
        DiskStore("/proc").allocate(SHAPE)


@contextmanager
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 8 KiB; its own output may be one, so nothing is to be printed within."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_room_that_cannot_be_reserved_is_an_error_that_leaves_nothing_behind(tmp_path: Path) -> None:
    store = DiskStore(str(tmp_path))
    needed = store.memory(SHAPE).disk
    message = rf"cannot reserve {needed:,} bytes of disk in .+: File too large; name an"
    with pytest.raises(UnavailableError, match=message), small_files():
        store.allocate(SHAPE)
    assert list(tmp_path.iterdir()) == []
    assert open_files(tmp_path) == []


# ------------------------------------------------------------------------------------------------ and its end


@pytest.mark.slow
def test_a_file_cut_short_is_an_error_and_no_crash(engine: Engine, tmp_path: Path, expected: list[list[int]]) -> None:
    class Cut:
        def start(self, tokens: Any, spec: Any) -> None: ...

        def step(self, record: Any) -> None:
            for file in open_files(tmp_path) if record.moment.step == 5 else ():
                os.truncate(file, 0)

        def end(self) -> None: ...

    with pytest.raises(UnavailableError, match="the cache's file cannot be used any more: it was cut short"):
        engine.generate([PROMPT], observers=[Cut()])
    engine.close()
    assert engine.generate([PROMPT]).tokens.tolist() == expected


def test_the_engine_closes_a_cache_when_it_needs_another_when_told_and_when_it_goes(
    engine: Engine, tmp_path: Path, expected: list[list[int]]
) -> None:
    for prompt in (PROMPT, PROMPT, PROMPT[:4], PROMPT):
        found = engine.generate([prompt])
        assert len(open_files(tmp_path)) == 1
    assert found.tokens.tolist() == expected
    for _ in range(2):
        engine.close()
        assert open_files(tmp_path) == []
    assert engine.generate([PROMPT]).tokens.tolist() == expected
    assert len(open_files(tmp_path)) == 1


@pytest.mark.slow
def test_a_cache_that_is_collected_unclosed_leaves_no_file_and_no_thread(tmp_path: Path) -> None:
    cache = DiskStore(str(tmp_path)).allocate(SHAPE)
    list(play(cache, SHAPE, [full_step(0), full_step(1)]))
    (worker,) = (thread for thread in threading.enumerate() if thread.name.startswith("esdllm-disk"))
    assert len(open_files(tmp_path)) == 1
    del cache
    gc.collect()
    worker.join(timeout=60)
    assert not worker.is_alive()
    assert open_files(tmp_path) == []


def test_a_closed_cache_says_so_and_bears_a_second_closing(tmp_path: Path) -> None:
    cache = DiskStore(str(tmp_path)).allocate(SHAPE)
    list(play(cache, SHAPE, [full_step(0)]))
    cache.close()
    cache.close()
    assert open_files(tmp_path) == []
    with pytest.raises(EsdllmError, match="this cache was closed; allocate another"):
        cache.reset()


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_and_the_next_one_in_its_folder_is_right(
    engine: Engine, tmp_path: Path, expected: list[list[int]]
) -> None:
    run = start(tmp_path, "hang")
    assert run.stdout is not None
    for _ in range(10):
        assert run.stdout.readline() == "step\n"
    assert len(open_files(tmp_path, run.pid)) == 1
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    run.communicate()
    assert list(tmp_path.iterdir()) == []
    assert engine.generate([PROMPT]).tokens.tolist() == expected


@pytest.mark.slow
def test_two_processes_in_one_folder_are_both_right(tmp_path: Path, expected: list[list[int]]) -> None:
    both = [start(tmp_path), start(tmp_path)]
    for run in both:
        said, _ = run.communicate()
        assert run.returncode == 0
        assert said.splitlines()[-1] == str(expected)
    assert list(tmp_path.iterdir()) == []
