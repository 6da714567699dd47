"""What only a canvas can do, asked of a server: the pipeline's own answers, and refusals by the field's name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from asgi import post

from esdllm import Engine, Pipeline
from esdllm.serving.api import Service, create_app
from esdllm.serving.session import Session


@pytest.fixture(scope="module")
def session(engine: Engine) -> Iterator[Session]:
    with Session.open(engine, slots=2, length=128) as opened:
        yield opened


@pytest.fixture(scope="module")
def served(session: Session) -> Any:
    return create_app(Service(session=session, model="small"))


def _asked(served: Any, path: str, **body: Any) -> Any:
    return post(served, path, {"model": "small", **body})


TURN = [{"role": "user", "content": "Is it so?"}]


@pytest.mark.parametrize("given", [{"prompt": "Is it so?"}, {"messages": TURN}, {"prompt": "It is[MASK] so."}])
@pytest.mark.parametrize("samples", [None, 2])
def test_options_are_weighed_as_the_pipeline_weighs_them(
    served: Any, engine: Engine, given: dict[str, Any], samples: int | None
) -> None:
    right = Pipeline(engine).choose(given.get("prompt", TURN), ["yes", "no, not"], samples=samples)
    found = _asked(served, "/v1/choose", **given, options=["yes", "no, not"], samples=samples).json
    assert (found["object"], found["model"], found["best"], found["text"]) == (
        "choice",
        "small",
        right.best,
        right.text,
    )
    assert found["probabilities"] == list(right.probabilities)
    score = _asked(served, "/v1/score", **given, text="yes", samples=samples or 128).json
    assert (
        score["log_prob"] == Pipeline(engine).score(given.get("prompt", TURN), "yes", samples=samples or 128).log_prob
    )


def test_an_answer_matches(served: Any, engine: Engine) -> None:
    found = _asked(served, "/v1/match", prompt="What?", pattern="[0-9]{2,4}").json
    assert found["text"] == Pipeline(engine).match("What?", pattern="[0-9]{2,4}").text
    assert _asked(served, "/v1/match", messages=TURN, schema={"type": "boolean"}).json["text"] in ("true", "false")


def test_a_text_is_edited(served: Any, engine: Engine) -> None:
    right = Pipeline(engine).edit("one two three", "Count!", span=(3, 7), below=1.0)
    body = {"text": "one two three", "instruction": "Count!", "below": 1}
    for span in ([3, 7], " two"):
        found = _asked(served, "/v1/edit", **body, span=span).json
        assert found["text"] == right.text
        assert found["changes"] == [list(change) for change in right.changes]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/choose", {"prompt": "a", "options": ["x"]}, 400, "options: 1 of them; give at least 2"),
        ("/v1/choose", {"prompt": "a", "options": ["x"] * 65}, 400, "give at most 64"),
        ("/v1/choose", {"prompt": "a", "options": ["x", "x"]}, 422, "is there twice"),
        ("/v1/choose", {"options": ["x", "y"]}, 400, "give either a prompt or messages"),
        (
            "/v1/choose",
            {"prompt": "a", "messages": TURN, "options": ["x", "y"]},
            400,
            "give either a prompt or messages",
        ),
        ("/v1/choose", {"prompt": "a", "options": ["x", "y"], "sample": 3}, 400, "there is no such field"),
        ("/v1/score", {"prompt": "a", "text": ""}, 422, "what is scored is a text"),
        ("/v1/match", {"prompt": "a"}, 422, "give either a pattern or a schema"),
        ("/v1/match", {"prompt": "a", "pattern": "("}, 422, "is no pattern that can be kept to"),
        ("/v1/match", {"prompt": "a", "schema": "x"}, 400, "'x' is no object"),
        ("/v1/edit", {"text": "a b", "span": [1]}, 400, "give at least 2"),
        ("/v1/edit", {"text": "a b", "span": "c"}, 422, "stands 0 times"),
        ("/v1/edit", {"text": "a b", "below": 0}, 400, "below"),
        ("/v1/edit", {"model": "other", "text": "a b"}, 404, "there is no model 'other'"),
    ],
)
def test_what_cannot_be_done_is_told_why(
    served: Any, path: str, body: dict[str, Any], status: int, message: str
) -> None:
    found = _asked(served, path, **body)
    assert (found.status, message in found.error["message"]) == (status, True), found.error
