"""A real cluster of Ray's on this machine, of several nodes, with as few idle processes as it lets one have."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
    """Find the processes, here, of a worker whose name has a part."""

    def running(part: str) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            words = process.info["cmdline"] or []
            if words and words[0].startswith(f"ray::{part}") and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    return running
