"""A cluster of Ray's: how this process joins it, and how workers share it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import ray

from esdllm.errors import UnavailableError

__all__ = ["Share", "joined", "shares"]

_PATIENCE = 5.0
"""seconds in which a cluster must take a connection"""
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
"""variables of Ray: nobody is told that it is used, and nothing of its inner life goes to standard error"""


@contextmanager
def joined(address: str = "") -> Iterator[Sequence[Mapping[str, float]]]:
    """Join the cluster at an address for this caller, and give what each of its machines has, by Ray's names of resources.

    Without an address it is that of the variable RAY_ADDRESS, else the one that was last started on this machine, else one
    of this process alone, which ends with it. A process that has joined one already stays in it.

    Raises:
        UnavailableError: there is no cluster, or its versions of Ray and Python are others.
    """
    mine = not ray.is_initialized()
    if mine:
        _join(address or os.environ.get("RAY_ADDRESS", ""))
    try:
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        if mine:
            ray.shutdown()


def _join(address: str) -> None:
    if "://" in address:
        raise UnavailableError(
            f"{address} is of Ray's client; run this on a machine of the cluster, and give HOST:PORT or nothing"
        )
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        if address not in ("", "auto", "local"):
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), _PATIENCE).close()  # Ray itself would try for minutes
        ray.init(address or None, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        raise UnavailableError(
            f"cannot join the Ray cluster at {address or 'this machine'}: {error!s:.300}; give HOST:PORT as `ray start --head` "
            "prints it, or no address, and one is made for this run"
        ) from error


@attrs.frozen
class Share:
    """How many workers there are, and what each takes of its machine."""

    workers: int
    cpus: int
    gpus: int

    def options(self) -> dict[str, Any]:
        """Return it in Ray's words."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}


def shares(machines: Sequence[Mapping[str, float]], workers: int | None, device: str | None) -> Share:
    """Return how `workers` share machines: a GPU each where there are any, else an equal number of processors each.

    As many as there are GPUs, or machines, if None.

    Raises:
        UnavailableError: there are fewer GPUs, or processors; or one GPU is named for all.
    """
    if device is not None and ":" in device:
        raise UnavailableError(f"--device {device} with --ray: each worker takes a GPU of its own; give --device cuda")
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    cpus = [count for machine in machines if (count := int(machine.get("CPU", 0)))]
    if device == "cpu" or (device is None and not gpus):
        return _of_processors(cpus, workers or len(cpus))
    if not gpus or (workers or 0) > gpus:
        raise UnavailableError(
            f"{workers or 1} workers, but this cluster has {gpus} GPUs; give "
            + (f"--jobs {gpus}" if gpus else "--device cpu, or `ray start --num-gpus`")
        )
    return Share(workers or gpus, 1, 1)


def _of_processors(cpus: Sequence[int], workers: int) -> Share:
    for each in range(max(cpus, default=0), 0, -1):
        if workers and sum(count // each for count in cpus) >= workers:
            return Share(workers, each, 0)
    raise UnavailableError(
        f"{workers} workers, but this cluster has {sum(cpus)} processors; "
        + (f"give --jobs {sum(cpus)}" if cpus else "start it with `ray start --num-cpus`")
    )
