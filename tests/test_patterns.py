"""Answers and blanks match their patterns under any configuration, and are the most probable texts that do."""

from __future__ import annotations

import json
import re
import sys
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from sampling import examples

from esdllm import Candidates, Catalogue, Engine, InputError, Pipeline, SampleView, UnavailableError
from esdllm.use.automata import Automaton, automaton
from esdllm.use.keeping import KeepingSampler, Kept, _best_path
from esdllm.use.schemas import pattern_of_schema

NAMES = ("tiny-llada", "tiny-dream", "tiny-sdar")
PATTERNS = [
    "[0-9]+",
    "(yes|no|perhaps)",
    r"[A-Z][a-z]{2,6}, [0-9]{1,3}\.",
    "(ab)*c",
    r"\{\"a\": [0-9]{1,4}\}",
    " ?(the|a) [a-z]+( [a-z]+)?",
    "(he|she){1,2}",
    r"-?[0-9]+(\.[0-9]+)?",
    ".{1,12}",
    "x",
]
SETTINGS = [
    ("vanilla", {}),
    ("dual-cache", {}),
    ("es-dllm", {"refresh": {"prompt_refresh": 4, "block_refresh": 2}}),
    ("es-dllm-parallel", {}),
    *(
        ("vanilla", {"unmasking": name})
        for name in ("editing", "p2", "wino", "remdm", "hierarchical-remask", "dc-leap")
    ),
    *(("vanilla", {"blocks": name}) for name in ("growing", "adablock", "sliding")),
    ("vanilla", {"unmasking": {"name": "threshold", "threshold": 0.05}}),
    ("vanilla", {"delay_eos": True}),
    ("vanilla", {"cfg_scale": 0.5}),
]


@pytest.fixture(scope="module")
def pipes(small: dict[str, Path], catalogue: Catalogue) -> dict[str, Pipeline]:
    held: Any = {"device": "cpu", "dtype": "float32", "catalogue": catalogue, "preset": "vanilla"}
    return {name: Pipeline.from_pretrained(small[name], gen_length=16, block_length=8, **held) for name in NAMES}


@pytest.fixture(scope="module")
def pipe(pipes: dict[str, Pipeline]) -> Pipeline:
    return pipes["tiny-llada"]


@examples(24)
@given(
    name=st.sampled_from(NAMES),
    pattern=st.sampled_from(PATTERNS),
    setting=st.sampled_from(SETTINGS),
    length=st.sampled_from([8, 12, 16]),
    prompt=st.sampled_from(["a", "What? abc", "1 + 2"]),
)
def test_an_answer_matches_under_any_configuration(
    pipes: dict[str, Pipeline],
    name: str,
    pattern: str,
    setting: tuple[str, dict[str, Any]],
    length: int,
    prompt: str,
) -> None:
    preset, over = setting
    if name == "tiny-sdar" and {*over} & {"cfg_scale", "blocks", "unmasking"}:
        return  # which a block-causal model may refuse
    pipe = pipes[name].configured(preset, gen_length=length, block_length=4, **over)
    assert re.fullmatch(pattern, pipe.match(prompt, pattern=pattern).text, re.DOTALL)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["a[MASK:3] b", "a [MASK:2], [MASK:4]!", "It is[MASK:5]"])
def test_blanks_match_and_have_their_lengths(pipes: dict[str, Pipeline], name: str, text: str) -> None:
    pipe = pipes[name]
    assert pipe.model.codec is not None
    found = pipe.infill(text, patterns="[a-z]+")
    blanks = iter(found.tokens)
    for length in found.lengths:
        fill = pipe.model.codec.decode([next(blanks) for _ in range(length)])
        assert re.fullmatch("[a-z]+", fill)


def test_a_blank_of_unknown_length_has_one_that_can_match(pipe: Pipeline) -> None:
    found = pipe.infill("a [MASK:1-6] b[MASK:1-2]", patterns=["[0-9]{4,5}", None])
    assert re.fullmatch("[0-9]{4,5}", found.fills[0])


def _enumerated(automaton: Automaton, scores: torch.Tensor) -> float:
    """Return the best sum of scores over every row of classes that is accepted."""
    length, count = scores.shape
    best = -torch.inf
    for row in product(range(count), repeat=length):
        state = 0
        for each in row:
            state = int(automaton.steps[state, each]) if state >= 0 else -1
        if state >= 0 and automaton.accepting[state]:
            best = max(best, float(sum(scores[at, each] for at, each in enumerate(row))))
    return best


@examples(80)
@given(seed=st.integers(0, 10_000), states=st.integers(1, 4), count=st.integers(1, 3), length=st.integers(1, 5))
def test_the_path_is_the_best_of_all_that_are_accepted(seed: int, states: int, count: int, length: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    steps = torch.randint(-1, states, (states, count), generator=draw)
    accepting = torch.rand(states, generator=draw) < 0.6
    made = Automaton(steps, torch.arange(count), accepting)
    scores = torch.randn(length, count, generator=draw)
    right = _enumerated(made, scores)
    assert made.fits(length) is (right > -torch.inf)
    if right > -torch.inf:
        path = _best_path(made, scores)
        assert made.accepts(path.tolist())
        assert float(scores.gather(1, path.unsqueeze(1)).sum()) == pytest.approx(right, abs=1e-5)


@example(pattern="(the|a)( [a-z]+)?", text="the a")  # on from where a text may end to where it may not
@examples(60)
@given(
    pattern=st.sampled_from(PATTERNS),
    text=st.one_of(
        st.text("ab c0129-.{}\"':éxyzAB,", max_size=10), st.sampled_from(PATTERNS).flatmap(st.from_regex).map(str.strip)
    ),
)
def test_an_automaton_accepts_what_python_matches(pipe: Pipeline, pattern: str, text: str) -> None:
    codec = pipe.model.codec
    assert codec is not None
    tokens = codec.encode(text)
    if codec.decode(tokens) == text and all("\ufffd" not in codec.decode([token]) for token in tokens):
        found = automaton(pattern, codec, pipe.model.spec.vocab)
        assert found.accepts(tokens) is bool(re.fullmatch(pattern, text))


@pytest.mark.parametrize("name", ["tiny-llada", "tiny-dream"])
def test_a_vocabulary_s_special_tokens_lead_nowhere(pipes: dict[str, Pipeline], name: str) -> None:
    model = pipes[name].model
    assert model.codec is not None
    found = automaton("(?s:.)*", model.codec, model.spec.vocab)
    assert not any(found.accepts([token]) for token in (model.spec.mask_id, *model.stop_ids))


def test_after_an_end_only_ends_come(pipe: Pipeline) -> None:
    model = pipe.model
    assert model.codec is not None
    found = automaton("[0-9]+", model.codec, model.spec.vocab, model.stop_ids)
    number, (first, *_), last = model.codec.encode("12"), model.stop_ids, model.stop_ids[-1]
    assert found.accepts(number)
    assert found.accepts([*number, last, first, last])
    assert not found.accepts([first])
    assert not found.accepts([*number, first, *number])


def test_a_run_whose_sampler_stays_is_the_run_without_a_constraint(pipe: Pipeline) -> None:
    engine: Engine = pipe.engine
    right = engine.generate("one two", chat=False)
    assert engine.generate("one two", chat=False, constraint=lambda inner: inner).answers == right.answers
    assert engine.generate("one two", chat=False).answers == right.answers


class _Fixed:
    """A sampler that gives the most probable tokens, by nothing that is read from a device."""

    def sample(self, view: SampleView) -> Candidates:
        confidence, tokens = view.logits.softmax(-1).max(-1)
        return Candidates(tokens, confidence)


@pytest.mark.slow
def test_keeping_to_a_pattern_reads_nothing_from_the_device(pipe: Pipeline) -> None:
    model = pipe.model
    assert model.codec is not None
    made = automaton("[0-9]+", model.codec, model.spec.vocab, model.stop_ids).to(torch.device("meta"))
    sampler = KeepingSampler(_Fixed(), (Kept(range(4, 9), made),), 0)
    with torch.device("meta"):
        view = SampleView(
            torch.zeros(1, 3, model.spec.vocab),
            torch.zeros(1, dtype=torch.int64),
            torch.zeros(1, dtype=torch.int64),
            torch.zeros(1, 3, dtype=torch.int64),
            torch.zeros(1, 3, dtype=torch.int64),
            torch.zeros(1, 12, dtype=torch.bool),
            torch.zeros(1, 12, dtype=torch.int64),
            torch.zeros(1, 12, dtype=torch.int64),
        )
    found = sampler.sample(view)
    assert (found.tokens.shape, found.confidence.shape) == ((1, 3), (1, 3))


SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {"type": "array", "items": {"enum": ["x", "yes"]}, "minItems": 1, "maxItems": 2},
    {"type": "boolean"},
    {"type": "null"},
    {"type": "string", "maxLength": 3},
    {"anyOf": [{"type": "integer"}, {"const": "no"}]},
    {
        "$defs": {"n": {"type": "number"}},
        "type": "object",
        "properties": {"n": {"$ref": "#/$defs/n"}},
        "required": ["n"],
    },
    {"type": "object", "properties": {"maximum": {"type": "boolean"}}, "required": ["maximum"], "title": "a name"},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: next(iter(schema)))
@pytest.mark.parametrize("name", ["tiny-llada", "tiny-dream"])
def test_an_answer_is_json_of_its_schema(pipes: dict[str, Pipeline], name: str, schema: dict[str, Any]) -> None:
    found = pipes[name].configured(gen_length=32, block_length=32).match("JSON?", schema=schema)
    jsonschema.validate(json.loads(found.text), schema)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "integer", "minimum": 3}, "no pattern keeps to the keyword 'minimum' of a schema"),
        ({"type": "string", "pattern": "."}, "no pattern keeps to the keyword 'pattern'"),
        ({"type": "array", "items": {"multipleOf": 2}}, "no pattern keeps to the keyword 'multipleOf'"),
        ({"anyOf": [{"type": "null"}, {"oneOf": []}]}, "no pattern keeps to the keyword 'oneOf'"),
        ({"properties": {"a": {"allOf": []}}}, "no pattern keeps to the keyword 'allOf'"),
        ({"$defs": {"a": {"not": {}}}}, "no pattern keeps to the keyword 'not'"),
        ({"type": "array", "uniqueItems": True}, "no pattern keeps to the keyword 'uniqueItems'"),
        ({"type": "nonsense"}, "is no schema that a pattern can say"),
        ("{", "is no JSON"),
        ("3", "a schema is an object"),
    ],
)
def test_what_a_schema_says_and_no_pattern_keeps_to_is_refused(schema: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pattern_of_schema(schema)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(a", "is no pattern that can be kept to"),
        ("a(?=b)b", "look-around, back-references and anchors are none"),
        (r"(a)\1", "is no pattern that can be kept to"),
        ("^a$", "is no pattern that can be kept to"),
        ("a{3000}", "has 3001 states, more than 1024"),
        ("", "a pattern is a regular expression, such as"),
        ("[0-9]{200}", "no text of 16 tokens or fewer matches"),
    ],
)
def test_a_pattern_that_cannot_be_kept_to_is_refused(pipe: Pipeline, pattern: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipe.match("a", pattern=pattern)


def test_what_contradicts_a_pattern_is_refused(pipe: Pipeline) -> None:
    with pytest.raises(
        InputError, match=r"sampler.temperature = 0.7: what matches a pattern is the most probable text"
    ):
        pipe.configured(sampler={"temperature": 0.7}).match("a", pattern="b")
    with pytest.raises(InputError, match="give either a pattern or a schema"):
        pipe.match("a")
    with pytest.raises(InputError, match="there are 1 patterns for 2 blanks"):
        pipe.infill("a [MASK] b [MASK]", patterns=["x"])
    with pytest.raises(
        InputError, match="no text of 1 or 2 tokens, nor of what lies between, matches the pattern of blank 0"
    ):
        pipe.infill("a [MASK:1-2] b", patterns="[0-9]{40}")


def test_without_outlines_core_the_extra_is_named(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "outlines_core", None)
    with pytest.raises(UnavailableError, match=r'patterns need outlines-core: pip install "esdllm\[pattern\]"'):
        pipe.match("a", pattern="b")
