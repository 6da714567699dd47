"""The server as a deployment of Ray Serve: replicas, each with an engine, a session and the application of `esdllm serve`.

What only a server needs is imported where it is used: workers that decode files import this package too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import validators

from esdllm.config import DEFAULT_MODEL, DEFAULT_PRESET
from esdllm.errors import ConfigError, UnavailableError, brief, known
from esdllm.plugins.catalogue import Catalogue
from esdllm.serving.ray.opening import open_session
from esdllm.use.batching import Setup

__all__ = ["ServeArguments", "ServeReplica", "deployment"]

_ROOM = 16
"""requests beyond those of slots and queue that reach a replica: to be refused, or to ask how it is"""
_DRAINING = 600.0
"""seconds in which a replica that is to stop may end what it has taken"""
_STDOUT = 1
"""the file descriptor that Ray writes to a replica's log"""
_WORDS = {"true": True, "false": False, "null": None}
"""values that a command line can write as text only"""


@attrs.frozen(kw_only=True)
class ServeArguments:
    """What `deployment` takes; on the command line of `serve run` as NAME=VALUE."""

    model: str = DEFAULT_MODEL
    """a folder that is at the same place on each machine, a hub id, or a shipped checkpoint"""
    served_model_name: str | None = None
    """what requests call the model; None: as `model`"""
    preset: str = DEFAULT_PRESET
    set: str | tuple[str, ...] = ()
    """settings as `--set` takes them; of a text those that blanks part"""
    device: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    compute: str | None = None
    family: str | None = None
    """of which family the model is, as `load_model` takes it; None where its config.json tells"""
    slots: int = attrs.field(default=8, validator=validators.ge(1))
    """requests that a replica decodes side by side"""
    length: int | None = attrs.field(default=None, validator=validators.optional(validators.ge(1)))
    """columns of a slot, for a prompt and its answer; None: as many as the model's context"""
    max_queue: int = attrs.field(default=64, validator=validators.ge(0))
    """requests that may wait at a replica"""
    timeout: float | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    """seconds after which an answer ends with what is there"""
    api_key_file: str | None = None
    """keys, one per line, of which a request must bring one; the variable ESDLLM_API_KEY of a replica is one more"""
    log_text: bool = False
    """whether the log has prompts and answers"""
    replicas: int = attrs.field(default=1, validator=validators.ge(0))
    """how many there are, or the fewest"""
    max_replicas: int | None = None
    """how many there may be, if their number goes by how many requests each has; None: `replicas`, always"""
    load: float | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    """requests per replica, running and waiting, at which that number is kept; None: as many as `slots`"""
    cpus: float = attrs.field(default=1, validator=validators.ge(0))
    """processors that a replica takes, and threads that it computes with, where it is no GPU that does"""
    gpus: float = attrs.field(default=0, validator=validators.ge(0))
    """GPUs that it takes"""

    def __attrs_post_init__(self) -> None:
        fewest = max(1, self.replicas)
        if self.max_replicas is not None and self.max_replicas < fewest:
            raise ConfigError(
                f"max_replicas = {self.max_replicas}; give {fewest} or more, since replicas = {self.replicas}"
            )
        if self.max_replicas is None and not self.replicas:
            raise ConfigError(
                "replicas = 0; give 1 or more, or max_replicas too: then there are none while nobody asks"
            )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ServeArguments:
        """Return arguments as YAML has them, or a command line, where numbers are texts.

        Raises:
            ConfigError: one that is not known, or out of range; names it.
        """
        fields = {field.name: field for field in attrs.fields(cls)}
        for name in given:
            if name not in fields:
                raise ConfigError(f"the deployment has no argument '{name}'{known(name, fields)}")
        try:
            return cls(**{name: _value(name, str(fields[name].type), value) for name, value in given.items()})
        except (TypeError, ValueError) as error:
            raise (
                error if isinstance(error, ConfigError) else ConfigError(f"the deployment's {error.args[0]}")
            ) from None

    def setup(self) -> Setup:
        """Return what a replica loads.

        Raises:
            ConfigError: an unknown preset or setting, or one that leaves a prompt no room.
        """
        sets = self.set.split() if isinstance(self.set, str) else self.set
        config = Catalogue.load().configure(self.preset, sets=sets)
        if self.length is not None and self.length <= config.gen_length:
            raise ConfigError(
                f"length = {self.length}, and gen_length = {config.gen_length}; give more, so that a prompt has room"
            )
        threads = None if self.gpus else max(1, int(self.cpus))
        held: Any = {"quantize": self.quantize, "compute": self.compute, "family": self.family}
        return Setup(self.model, config.to_dict(), self.device, self.dtype, threads=threads, **held)

    def options(self) -> dict[str, Any]:
        """Return what Ray Serve is told of the deployment."""
        scaling: dict[str, Any] = {"num_replicas": self.replicas}
        if self.max_replicas is not None:
            load = self.load or self.slots
            scaling = {
                "autoscaling_config": {
                    "min_replicas": self.replicas,
                    "max_replicas": self.max_replicas,
                    "target_ongoing_requests": load,
                }
            }
        return {
            **scaling,
            "max_ongoing_requests": self.slots + self.max_queue + _ROOM,
            "max_queued_requests": self.max_queue + _ROOM,
            "graceful_shutdown_timeout_s": _DRAINING,
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": self.gpus},
        }


def _value(name: str, kind: str, value: Any) -> Any:
    """Return a value of a field whose annotation is `kind`."""
    if isinstance(value, str) and not kind.startswith("str"):
        value = _WORDS.get(value.lower(), value)
    if value is None and "None" in kind:
        return None
    for number in (int, float):
        if kind.startswith(number.__name__):
            try:
                if isinstance(value, bool) or (number is int and float(value) % 1):
                    raise ValueError
                return number(value)
            except (TypeError, ValueError):
                told = "a whole number" if number is int else "a number"
                raise ConfigError(f"the deployment's '{name}' is {brief(value)}; give {told}") from None
    if kind == "bool" and not isinstance(value, bool):
        raise ConfigError(f"the deployment's '{name}' is {brief(value)}; give true or false")
    return tuple(value) if isinstance(value, list) else value


class ServeReplica:
    """One process of the deployment; Ray Serve calls its methods."""

    def __init__(self, arguments: ServeArguments) -> None:
        from esdllm.serving.api import RequestLimits, Service
        from esdllm.serving.api.keys import read_keys
        from esdllm.serving.api.logs import LineLog

        keys = read_keys(Path(arguments.api_key_file) if arguments.api_key_file else None)
        self._session = open_session(arguments.setup(), arguments.slots, arguments.length, arguments.max_queue)
        self._log = LineLog(_STDOUT)
        self._service = Service(
            session=self._session,
            model=arguments.served_model_name or arguments.model,
            keys=keys,
            limits=RequestLimits(request_seconds=arguments.timeout),
            log=self._log,
            log_text=arguments.log_text,
        )

    def __serve_build_asgi_app__(self) -> Any:
        from esdllm.serving.api import create_app

        return create_app(self._service)

    def check_health(self) -> None:
        """Return if requests are taken.

        Raises:
            UnavailableError: a step is stuck, or the session ended: Ray Serve replaces the replica.
        """
        if (condition := self._service.condition()) != "ready":
            raise UnavailableError(f"this replica is {condition}")

    def __del__(self) -> None:
        """End: Ray Serve has let it answer what it had taken."""
        self._session.close(10.0)
        self._log.close()


def deployment(arguments: Mapping[str, Any]) -> Any:
    """Return an application of Ray Serve: `serve run esdllm.serving.ray:deployment model=tiny-llada slots=8`.

    Args:
        arguments: those of `ServeArguments`, by name.

    Raises:
        ConfigError: one that is not known or out of range; names it. Unknown presets and settings too.
    """
    from ray import serve

    asked = ServeArguments.of(arguments)
    asked.setup()  # what is wrong there is said here, not by replicas that cannot start
    return serve.deployment(serve.ingress()(ServeReplica), name="esdllm", **asked.options()).bind(asked)
