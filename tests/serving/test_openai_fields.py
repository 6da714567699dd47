"""Each field of a body: what it comes to in a request of the session, and what it cannot be."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from asgi import JSON, call, post
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples
from stand_in import StandIn, chat

from esdllm.serving.api.asked import REFUSED, AskedChat, AskedCompletion, AskedInfill

CHAT, TEXT, FIM = "/v1/chat/completions", "/v1/completions", "/v1/fim/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: chat(),
    TEXT: {"model": "small", "prompt": "a", "max_tokens": 4},
    FIM: {"model": "small", "prompt": "a", "suffix": "b", "max_tokens": 2},
}
CLASSES = {CHAT: AskedChat, TEXT: AskedCompletion, FIM: AskedInfill}
JSONS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def refused(app: Any, path: str, **over: Any) -> dict[str, Any]:
    """Return the error of a body that asks for what cannot be had."""
    found = post(app, path, {**BODIES[path], **over})
    assert found.status == 400, found.body
    return found.error


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("field", "value", "settings"),
    [
        ("temperature", 0.7, {"sampler": {"temperature": 0.7}}),
        ("temperature", 0, {"sampler": {"temperature": 0.0}}),
        ("temperature", 2, {"sampler": {"temperature": 2.0}}),
        ("top_p", 0.1, {"sampler": {"top_p": 0.1}}),
        ("top_k", 5, {"sampler": {"top_k": 5}}),
        ("top_k", -1, {"sampler": {"top_k": 0}}),
        ("temperature", None, {}),
    ],
)
def test_a_sampler_s_field_is_an_option_of_the_sampler(
    app: Any, stand_in: StandIn, path: str, field: str, value: Any, settings: dict[str, Any]
) -> None:
    post(app(), path, {**BODIES[path], field: value})
    (ticket,) = stand_in.tickets
    length = {} if ticket.request.infill else {"gen_length": BODIES[path]["max_tokens"]}
    assert ticket.request.settings == {**length, **settings}


@pytest.mark.parametrize("path", BODIES)
def test_n_are_requests_of_seeds_that_follow_each_other(app: Any, stand_in: StandIn, path: str) -> None:
    found = post(app(), path, {**BODIES[path], "n": 3, "seed": 41})
    assert [ticket.request.seed for ticket in stand_in.tickets] == [41, 42, 43]
    assert [choice["index"] for choice in found.json["choices"]] == [0, 1, 2]
    stand_in.tickets.clear()
    post(app(), path, {**BODIES[path], "n": 2})
    assert [ticket.request.seed for ticket in stand_in.tickets] == [0, 1]  # from the configuration's


def test_several_prompts_are_answered_in_their_order_n_of_each(app: Any, stand_in: StandIn) -> None:
    found = post(app(), TEXT, {"model": "small", "prompt": ["a", "b c"], "n": 2, "seed": 7, "max_tokens": 2}).json
    requests = [ticket.request for ticket in stand_in.tickets]
    assert [(one.prompt, one.seed, one.chat) for one in requests] == [
        ("a", 7, False),
        ("a", 8, False),
        ("b c", 7, False),
        ("b c", 8, False),
    ]
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    prompts = sum(ticket.prompt_tokens for ticket in stand_in.tickets[::2])  # each prompt counts once
    assert found["usage"] == {"prompt_tokens": prompts, "completion_tokens": 8, "total_tokens": prompts + 8}


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["a", [1]], ["a", [1]]),
    ],
)
def test_a_prompt_is_text_or_tokens_or_a_list_of_those(app: Any, stand_in: StandIn, prompt: Any, prompts: Any) -> None:
    assert post(app(), TEXT, {"model": "small", "prompt": prompt}).status == 200
    assert [ticket.request.prompt for ticket in stand_in.tickets] == prompts


@pytest.mark.parametrize(
    ("field", "lengths"),
    [("max_tokens", {"max_tokens": 3}), ("max_completion_tokens", {"max_completion_tokens": 3, "max_tokens": None})],
)
def test_either_name_of_the_length_will_do(app: Any, stand_in: StandIn, field: str, lengths: dict[str, Any]) -> None:
    found = post(app(), CHAT, {**chat(), **lengths})
    assert stand_in.tickets[0].request.settings == {"gen_length": 3}
    assert found.json["choices"][0]["finish_reason"] == "length"
    both = post(app(), CHAT, {**chat(), "max_tokens": 3, "max_completion_tokens": 4})
    assert (both.status, both.error["param"]) == (400, "max_tokens")


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("stop", "stops"), [("x", ("x",)), (["x", "yz"], ("x", "yz")), ([], ()), (["a"] * 64, ("a",) * 64)]
)
def test_stop_is_a_text_or_up_to_64(app: Any, stand_in: StandIn, path: str, stop: Any, stops: Any) -> None:
    assert post(app(), path, {**BODIES[path], "stop": stop}).status == 200
    request = stand_in.tickets[0].request
    assert request.stop == (() if request.infill else stops)  # a blank's end is looked for when it is filled in


def test_turns_are_the_conversation(app: Any, stand_in: StandIn) -> None:
    turns = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "name": "user",
            "content": [
                {"type": "text", "text": "What is "},
                {"type": "text", "text": "2 + 3?", "cache_control": {"type": "ephemeral"}},
            ],
        },
        {"role": "assistant", "content": "5", "tool_calls": None, "refusal": None, "annotations": [], "audio": None},
        {"role": "user", "content": ""},
    ]
    assert post(app(), CHAT, chat(messages=turns)).status == 200
    assert stand_in.tickets[0].request.prompt == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": "5"},
        {"role": "user", "content": ""},
    ]


@pytest.mark.parametrize(
    ("turn", "param"),
    [
        ({"role": "tool", "content": "5"}, "messages[0].role"),
        ({"role": 1, "content": "5"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"content": "5"}, "messages[0].role"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": "a\ud800"}, "messages[0].content"),
        ({"role": "user", "content": "a", "name": "Ann"}, "messages[0].name"),
        ({"role": "user", "content": "a", "colour": "red"}, "messages[0].colour"),
        ({"role": "assistant", "content": "a", "tool_calls": [{}]}, "messages[0].tool_calls"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "messages[0].content[0].image_url",
        ),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": [{"type": "refusal", "text": "x"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": ["a"]}, "messages[0].content[0]"),
        ("user: a", "messages[0]"),
        (None, "messages[0]"),
    ],
)
def test_a_turn_that_cannot_be_read_is_named(app: Any, turn: Any, param: str) -> None:
    assert refused(app(), CHAT, messages=[turn])["param"] == param


UNSERVED = [
    ("frequency_penalty", 0.5, 0),
    ("presence_penalty", -1, 0.0),
    ("repeat_penalty", 1.1, 1),
    ("repetition_penalty", 1.1, 1),
    ("logit_bias", {"5": 1}, {}),
    ("top_logprobs", 3, 0),
    ("best_of", 2, 1),
    ("store", True, False),
    ("service_tier", "priority", "auto"),
    ("min_p", 0.1, 0),
    ("min_tokens", 4, 0),
    ("ignore_eos", True, False),
    ("early_stopping", True, False),
    ("include_stop_str_in_output", True, False),
    ("length_penalty", 0.5, 1),
    ("skip_special_tokens", False, True),
    ("spaces_between_special_tokens", False, True),
    ("stop_token_ids", [2], []),
    ("use_beam_search", True, False),
]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("field", "value", "inert"), UNSERVED)
def test_a_field_that_cannot_be_served_is_refused_unless_it_asks_for_nothing(
    app: Any, path: str, field: str, value: Any, inert: Any
) -> None:
    error = refused(app(), path, **{field: value})
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")
    assert "cannot be served" in error["message"]
    for nothing in (inert, None):
        assert post(app(), path, {**BODIES[path], field: nothing}).status == 200


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (CHAT, "tools", [{"type": "function"}]),
        (CHAT, "tool_choice", "required"),
        (CHAT, "functions", [{}]),
        (CHAT, "modalities", ["text", "audio"]),
        (CHAT, "audio", {"voice": "alloy"}),
        (CHAT, "prediction", {"type": "content"}),
        (CHAT, "reasoning_effort", "high"),
        (CHAT, "web_search_options", {}),
        (CHAT, "verbosity", "low"),
        (CHAT, "echo", True),
        (CHAT, "add_generation_prompt", False),
        (CHAT, "continue_final_message", True),
        (CHAT, "chat_template_kwargs", {"enable_thinking": False}),
        (TEXT, "echo", True),
        (TEXT, "suffix", "b"),
        (FIM, "logprobs", True),
    ],
)
def test_what_only_one_endpoint_knows_is_refused_there(app: Any, path: str, field: str, value: Any) -> None:
    error = refused(app(), path, **{field: value})
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")


def test_where_a_suffix_is_served_is_told(app: Any) -> None:
    assert "/v1/fim/completions takes it" in refused(app(), TEXT, suffix="b")["message"]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("field", ["temprature", "max_new_tokens", "guided_json", "", "Model", "\ud800", "x" * 10**6])
def test_an_unknown_field_is_refused_by_its_name(app: Any, path: str, field: str) -> None:
    error = refused(app(), path, **{field: 1})
    assert (error["param"], error["code"]) == (field[:80], "unknown_parameter")
    assert len(error["message"]) < 1000
    if field == "temprature":
        assert "did you mean 'temperature'?" in error["message"]
    assert post(app(), path, {**BODIES[path], field: None}).status == 200


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("model", (1, ["small"], {}, True, "smal\ud800")),
        ("temperature", (-0.1, 2.1, "1", True, [1], 10**400)),
        ("top_p", (0, 1.01, -1, "0.5", False)),
        ("top_k", (-2, 1.0, "5", True, 2**31)),
        ("max_tokens", (0, -1, 1.5, 4.0, "4", True, 2**31, 10**30, [4])),
        ("seed", (-1, 0.5, "1", 2**63, True)),
        ("n", (0, 129, 1.0, "1", True)),
        ("stop", ("", [""], ["a"] * 65, 1, [1], {"a": 1}, "\udfff", ["\udfff"])),
        ("stream", (1, 0, "true", [])),
        ("stream_options", (True, [], "x", {"include_usage": 1}, {"other": True}, {"include_obfuscation": True})),
        ("diffusing", (1, "true")),
        ("user", (1, ["a"], {})),
        ("metadata", (1, "a", [], {"a": 1}, {"a": None})),
    ],
)
def test_a_value_that_a_field_cannot_have_is_refused_by_the_field_s_name(
    app: Any, path: str, field: str, values: tuple[Any, ...]
) -> None:
    for value in values:
        error = refused(app(), path, **{field: value})
        assert error["param"].split("[")[0].split(".")[0] == field, value


@pytest.mark.parametrize(
    ("path", "over", "param"),
    [
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "hello"}, "messages"),
        (CHAT, {"messages": {}}, "messages"),
        (CHAT, {"messages": None}, "messages"),
        (CHAT, {"logprobs": 1}, "logprobs"),
        (CHAT, {"prompt": "a"}, "prompt"),
        (CHAT, {"response_format": {"type": "json_object"}}, "response_format.type"),
        (CHAT, {"response_format": {"type": "text", "json_schema": {}}}, "response_format.json_schema"),
        (CHAT, {"response_format": "text"}, "response_format"),
        (CHAT, {"response_format": {}}, "response_format.type"),
        (TEXT, {"prompt": []}, "prompt"),
        (TEXT, {"prompt": None}, "prompt"),
        (TEXT, {"prompt": 5}, "prompt"),
        (TEXT, {"prompt": [1, "a"]}, "prompt[0]"),
        (TEXT, {"prompt": [[]]}, "prompt[0]"),
        (TEXT, {"prompt": [[1, -1]]}, "prompt[0][1]"),
        (TEXT, {"prompt": [1, True]}, "prompt[0]"),
        (TEXT, {"prompt": ["a"] * 1025}, "prompt"),
        (TEXT, {"logprobs": 1}, "logprobs"),
        (TEXT, {"logprobs": True}, "logprobs"),
        (TEXT, {"messages": []}, "messages"),
        (TEXT, {"seed": 2**63 - 1, "n": 2}, "seed"),
        (TEXT, {"stream_options": {"include_usage": True}}, "stream_options"),
        (TEXT, {"diffusing": True}, "diffusing"),
        (FIM, {"prompt": None, "suffix": None}, "prompt"),
        (FIM, {"template": "a [MASK]"}, "prompt"),
        (FIM, {"prompt": None, "template": "a [MASK]"}, "suffix"),
        (FIM, {"prompt": None, "suffix": None, "template": "a [MASK]"}, "max_tokens"),
        (FIM, {"prompt": None, "suffix": None, "max_tokens": None, "template": "a [MASK]", "stop": "x"}, "stop"),
        (FIM, {"seed": 1, "random_seed": 1}, "random_seed"),
        (FIM, {"prompt": ["a"]}, "prompt"),
    ],
)
def test_fields_that_do_not_go_together_or_are_missing_are_named(
    app: Any, path: str, over: dict[str, Any], param: str
) -> None:
    assert refused(app(), path, **over)["param"] == param


@pytest.mark.parametrize("path", BODIES)
def test_harmless_fields_are_accepted(app: Any, path: str) -> None:
    harmless = {"user": "u", "metadata": {"a": "b"}, "safety_identifier": "s", "prompt_cache_key": "k"}
    assert post(app(), path, {**BODIES[path], **harmless, "prompt_cache_retention": "24h"}).status == 200
    assert post(app(), CHAT, chat(response_format={"type": "text"}, parallel_tool_calls=True, tools=[])).status == 200


def test_a_field_that_the_server_leaves_aside_is_as_if_it_was_not_given(
    app: Any, stand_in: StandIn, log: list[Any]
) -> None:
    served, tools = app(ignored=("tools", "ignore_eos")), [{"type": "function", "function": {"name": "look"}}]
    assert post(served, CHAT, chat(tools=tools)).status == 200
    assert post(served, CHAT, chat()).status == 200
    assert post(served, TEXT, {**BODIES[TEXT], "ignore_eos": True, "tools": None}).status == 200
    assert refused(served, CHAT, tools=tools, functions=[{}])["param"] == "functions"
    assert stand_in.tickets[0].request == stand_in.tickets[1].request
    assert [line.get("ignored") for line in log] == [["tools"], None, ["ignore_eos"], ["tools"]]


def test_what_can_be_left_aside_is_what_is_refused(app: Any) -> None:
    served = app()
    for name in set(REFUSED) - {"suffix"}:  # which fim takes
        assert {post(served, path, {**BODIES[path], name: "?"}).status for path in BODIES} == {400}, name
    taken = {field.name for kind in CLASSES.values() for field in attrs.fields(kind)}
    assert taken & set(REFUSED) == {"suffix"}
    assert {name for name, *_ in UNSERVED} <= set(REFUSED)


ZED_STOPS = ["<|endoftext|>", "<|fim_pad|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<PRE>", "[PREFIX]"]
CLIENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Continue, chat": (
        CHAT,
        {"max_tokens": 64, "stream": True, "stream_options": {"include_usage": True}, "parallel_tool_calls": False},
    ),
    "Continue, completions in an editor": (
        FIM,
        {
            "max_tokens": 16,
            "temperature": 0.01,
            "stop": ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "/src/", "#- coding: utf-8", "```", "\nclass"],
            "stream": True,
        },
    ),
    "Zed, completions in an editor": (
        TEXT,
        {"prompt": "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>", "temperature": None, "stop": ZED_STOPS},
    ),
    "Zed, chat": (
        CHAT,
        {
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": None,
            "max_completion_tokens": 16,
            "prompt_cache_key": "c2f7",
            "parallel_tool_calls": True,
        },
    ),
    "vLLM's benchmark": (
        TEXT,
        {
            "repetition_penalty": 1.0,
            "temperature": 0.0,
            "logprobs": None,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": False,
        },
    ),
    "guidellm": (
        CHAT,
        {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}, "stop": None},
    ),
    "lm-eval": (
        TEXT,
        {"stop": ["\n\n", "Question:", "</s>", "<|im_end|>", "<|endoftext|>"], "seed": 1234, "temperature": 0},
    ),
    "LangChain": (
        TEXT,
        {"logprobs": False, "frequency_penalty": 0.0, "presence_penalty": 0.0, "top_p": 1.0, "n": 1, "logit_bias": {}},
    ),
}


@pytest.mark.parametrize("client", CLIENTS)
def test_what_a_client_sends_unasked_is_served(app: Any, client: str) -> None:
    path, sent = CLIENTS[client]
    assert post(app(), path, {**BODIES[path], **sent}).status == 200


@pytest.mark.parametrize("path", BODIES)
def test_null_is_a_field_that_was_not_given(app: Any, stand_in: StandIn, path: str) -> None:
    named = {field.name: None for field in attrs.fields(CLASSES[path])}
    assert post(app(), path, {**named, **BODIES[path]}).status == 200
    assert post(app(), path, BODIES[path]).status == 200
    first, second = (ticket.request for ticket in stand_in.tickets)
    assert first == second


@examples(150)
@given(data=st.data())
def test_whatever_a_field_holds_the_answer_is_an_answer_or_an_error_by_name(engine: Any, data: st.DataObject) -> None:
    from esdllm.serving.api import Service, create_app

    app = create_app(Service(session=StandIn(engine), model="small"))
    path = data.draw(st.sampled_from(list(BODIES)))
    names = [field.name for field in attrs.fields(CLASSES[path])] + [name for name, *_ in UNSERVED]
    over = data.draw(st.dictionaries(st.sampled_from(names), JSONS, max_size=3))
    found = post(app, path, {**BODIES[path], **over})
    if found.status == 200:
        assert found.events if over.get("stream") else found.json["choices"]
    else:
        assert found.status in (400, 404, 422, 429)
        param = found.error["param"]
        assert param is None or param.split("[")[0].split(".")[0] in {*over, *BODIES[path]}


@examples(100)
@given(JSONS)
def test_a_body_of_any_json_is_refused_with_a_reason(engine: Any, body: Any) -> None:
    from esdllm.serving.api import Service, create_app

    app = create_app(Service(session=StandIn(engine), model="small"))
    found = call(app, "POST", TEXT, json.dumps(body).encode(), JSON)
    assert found.status == 400
    assert found.error["code"] in ("invalid_json", "missing_required_parameter", "unknown_parameter")
