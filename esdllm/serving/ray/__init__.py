"""Many machines, by Ray: the server as a deployment of Ray Serve, rows of a Ray dataset, files. Needs the extra `ray`."""

from __future__ import annotations

from esdllm.serving.ray.deploying import ServeArguments, ServeReplica, deployment
from esdllm.serving.ray.files import RayWorkers
from esdllm.serving.ray.rows import Decoder

__all__ = ["Decoder", "RayWorkers", "ServeArguments", "ServeReplica", "deployment"]
