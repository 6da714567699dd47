"""The laws of the deployment: the same application and answers as `esdllm serve`, by replicas of which any may be killed."""

from __future__ import annotations

import http.client
import importlib
import json
import re
import shlex
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import attrs
import pytest
import yaml

pytest.importorskip("ray", reason='needs ray: pip install "esdllm[ray]"')

from esdllm import Engine, configure, load_model
from esdllm.errors import ConfigError, UnavailableError
from esdllm.serving.ray import ServeArguments, ServeReplica, deployment

pytestmark = pytest.mark.ray

SETTINGS = {"gen_length": 64, "block_length": 8}
MESSAGES = [{"role": "user", "content": "Who are you?"}]
Workers = Callable[[str], list[Any]]


@pytest.fixture(scope="module")
def port(cluster: Any, small: dict[str, Path]) -> Iterator[int]:
    """Where two replicas of two slots each are served, on two nodes."""
    import ray
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found = free.getsockname()[1]
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    serve.start(http_options={"port": found}, proxy_location="HeadOnly")
    arguments = {
        "model": str(small["tiny-llada"]),
        "served_model_name": "small",
        "slots": "2",
        "length": "256",
        "replicas": 2,
    }
    serve.run(deployment({**arguments, "set": "gen_length=64 block_length=8"}), name="esdllm")
    yield found
    serve.shutdown()
    ray.shutdown()


def asked(port: int, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    sent = None if body is None else json.dumps(body)
    connection.request(method, path, sent, {"content-type": "application/json"})
    return connection.getresponse()


def answer(port: int) -> tuple[int, str]:
    found = asked(port, "POST", "/v1/chat/completions", {"model": "small", "messages": MESSAGES})
    told = json.loads(found.read())
    return found.status, told["choices"][0]["message"]["content"] if found.status == 200 else told


@pytest.fixture(scope="module")
def alone(small: dict[str, Path]) -> str:
    """The answer of an engine here."""
    engine = Engine.build(load_model(small["tiny-llada"], "cpu"), configure("es-dllm", settings=SETTINGS))
    found = engine.generate([MESSAGES], chat=True).text
    assert found is not None
    return found[0]


def test_the_application_is_the_server_s(port: int, alone: str) -> None:
    assert answer(port) == (200, alone)
    assert json.loads(asked(port, "GET", "/v1/models").read())["data"][0]["id"] == "small"
    assert asked(port, "GET", "/health").status == 200
    assert b"<html" in asked(port, "GET", "/").read()
    refused = asked(port, "POST", "/v1/chat/completions", {"model": "other", "messages": MESSAGES})
    assert (refused.status, json.loads(refused.read())["error"]["code"]) == (404, "model_not_found")


def test_a_stream_comes_through_part_by_part(port: int, alone: str) -> None:
    body = {"model": "small", "messages": MESSAGES, "stream": True}
    found = asked(port, "POST", "/v1/chat/completions", body)
    assert found.headers["content-type"].startswith("text/event-stream")
    times, texts = [], []
    for line in found:
        if line.startswith(b"data: {"):
            delta = json.loads(line[6:])["choices"][0]["delta"]
            times.append(time.monotonic())
            texts.append(delta.get("content") or "")
    assert "".join(texts) == alone
    assert sum(bool(text) for text in texts) > 1
    assert times[-1] > times[0]


def test_a_client_that_leaves_frees_its_slot(port: int, alone: str) -> None:
    body = {"model": "small", "messages": MESSAGES, "stream": True, "max_tokens": 200}
    for _ in range(8):
        asked(port, "POST", "/v1/chat/completions", body).close()
    deadline, cancelled, running = time.monotonic() + 60, 0.0, 1.0
    while (not cancelled or running) and time.monotonic() < deadline:
        told = asked(port, "GET", "/metrics").read().decode()
        found = re.search(r'request_success_total\{[^}]*"cancelled"[^}]*\} (\S+)', told)
        now = re.search(r"num_requests_running\{[^}]*\} (\S+)", told)
        assert found is not None
        assert now is not None
        cancelled, running = max(cancelled, float(found[1])), float(now[1])
    assert cancelled
    assert not running
    assert answer(port) == (200, alone)


@pytest.mark.full
def test_more_requests_than_slots_bring_another_replica_and_none_is_lost(port: int, small: dict[str, Path]) -> None:
    from ray import serve

    given = {"model": str(small["tiny-llada"]), "served_model_name": "small", "slots": 1, "length": 256, "cpus": 0}
    more = {**given, "set": "gen_length=128", "replicas": 1, "max_replicas": 2}
    serve.run(deployment(more), name="more", route_prefix="/more")
    statuses: list[int] = []

    def ask() -> None:
        while running() < 2 and time.monotonic() < deadline:
            body = {"model": "small", "messages": MESSAGES}
            statuses.append(asked(port, "POST", "/more/v1/chat/completions", body).status)

    def running() -> int:
        states = serve.status().applications["more"].deployments["esdllm"].replica_states
        return sum(count for state, count in states.items() if state == "RUNNING")

    deadline = time.monotonic() + 180
    threads = [Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert running() == 2
    assert set(statuses) == {200}
    serve.delete("more")


def test_a_killed_replica_is_replaced(port: int, alone: str, workers: Workers) -> None:
    first = workers("ServeReplica:esdllm")
    assert len(first) == 2
    first[0].send_signal(signal.SIGKILL)
    deadline, again = time.monotonic() + 90, []
    while len(again) < 2 and time.monotonic() < deadline:
        again = [one for one in workers("ServeReplica:esdllm") if one.pid != first[0].pid]
        time.sleep(0.2)
    assert len(again) == 2
    assert answer(port) == (200, alone)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"slot": 4}, r"no argument 'slot'.*slots"),
        ({"slots": "many"}, "'slots' is 'many'; give a whole number"),
        ({"slots": "2.5"}, "'slots' is '2.5'; give a whole number"),
        ({"slots": True}, "'slots' is True; give a whole number"),
        ({"slots": 0}, "'slots' must be >= 1: 0"),
        ({"length": "-1"}, "'length' must be >= 1"),
        ({"max_queue": -1}, "'max_queue' must be >= 0"),
        ({"timeout": "0"}, "'timeout' must be > 0"),
        ({"log_text": "perhaps"}, "'log_text' is 'perhaps'; give true or false"),
        ({"replicas": 0}, "replicas = 0; give 1 or more"),
        ({"replicas": 3, "max_replicas": 2}, "max_replicas = 2; give 3 or more"),
        ({"cpus": "few"}, "'cpus' is 'few'; give a number"),
        ({"length": 256}, "length = 256, and gen_length = 256; give more"),
        ({"preset": "es-dlm"}, "es-dllm"),
        ({"set": "gen_lenght=3"}, "gen_length"),
    ],
)
def test_an_argument_that_is_wrong_is_named_before_anything_is_deployed(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        deployment(given)


@pytest.mark.parametrize("where", ["rayservice", "docs"])
def test_what_is_written_down_is_taken(where: str) -> None:
    root = Path(__file__).parent.parent.parent
    if where == "docs":
        line = re.search(r"^serve run (\S+) (.*)", (root / "docs" / "ray.md").read_text(encoding="utf-8"), re.MULTILINE)
        assert line is not None
        path, given = line[1], dict(word.split("=", 1) for word in shlex.split(line[2]))
    else:
        service = yaml.safe_load((root / "deploy" / "rayservice.yaml").read_text(encoding="utf-8"))
        (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
        path, given = application["import_path"], application["args"]
        workers = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        assert sum(group["maxReplicas"] for group in workers) >= given["max_replicas"]
        mounts = workers[0]["template"]["spec"]["containers"][0]["volumeMounts"]
        assert any(given["api_key_file"].startswith(mount["mountPath"] + "/") for mount in mounts)
    module, name = path.split(":")
    assert getattr(importlib.import_module(module), name) is deployment
    assert deployment(given) is not None


def test_every_argument_is_on_the_page() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "ray.md").read_text(encoding="utf-8")
    names = {name for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert names == {field.name for field in attrs.fields(ServeArguments)}


def test_arguments_are_read_from_a_command_line_as_from_yaml() -> None:
    typed = {"slots": 4, "cpus": 2.0, "length": None, "log_text": True, "set": ["gen_length=64", "block_length=8"]}
    texts = {"slots": "4", "cpus": "2", "length": "null", "log_text": "true", "set": "gen_length=64 block_length=8"}
    one, other = ServeArguments.of(typed), ServeArguments.of(texts)
    assert one.setup() == other.setup()
    assert one.setup().threads == 2
    assert one.options() == other.options()


def test_replicas_are_scaled_by_their_requests_where_there_may_be_more() -> None:
    fixed = ServeArguments.of({"replicas": 3}).options()
    assert fixed["num_replicas"] == 3
    scaled = ServeArguments.of({"replicas": 1, "max_replicas": 8, "slots": 4, "gpus": 1}).options()
    assert scaled["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 4}
    assert scaled["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 1}
    assert "num_replicas" not in scaled
    assert scaled["max_ongoing_requests"] > 4 + 64


def test_what_was_asked_is_answered_before_a_replica_ends(port: int) -> None:
    from ray import serve

    body = {"model": "small", "messages": MESSAGES, "stream": True, "max_tokens": 200}
    found = asked(port, "POST", "/v1/chat/completions", body)
    lines = [found.readline()]
    ending = Thread(target=serve.delete, args=("esdllm",))
    ending.start()
    lines += found.read().splitlines()
    ending.join()
    assert b"data: [DONE]" in lines
    assert not any(b"error" in line for line in lines)
    assert asked(port, "GET", "/health").status == 404


def test_a_replica_whose_session_ended_is_not_healthy(small: dict[str, Path]) -> None:
    setup = {"model": str(small["tiny-llada"]), "set": "gen_length=16 block_length=8", "slots": 1, "length": 64}
    replica = ServeReplica(ServeArguments.of(setup))
    replica.check_health()
    replica._session.close(10)
    with pytest.raises(UnavailableError, match="draining"):
        replica.check_health()
