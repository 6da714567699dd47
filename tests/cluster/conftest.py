"""A real cluster of Ray's on this machine, of several nodes, with as few idle processes as it lets one have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest

_FEW = {"RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A head without processors, and two nodes with one each."""
    for name, value in {**_FEW, "OMP_NUM_THREADS": "1"}.items():
        os.environ[name] = value
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        found.add_node(num_cpus=1)
    yield found
    found.shutdown()


@pytest.fixture
def workers() -> Any:
    """Find the workers of the cluster, which are this process's children's children, whose name begins with a word."""

    def running(word: str) -> list[psutil.Process]:
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if (
                    "".join(process.cmdline()[:1]).startswith(f"ray::{word}")
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(process)
        return found

    return running
