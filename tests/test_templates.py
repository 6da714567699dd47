"""A chat template renders as transformers renders it, within bounds, and what goes wrong in it is said in a line."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from esdllm import (
    Catalogue,
    CheckpointError,
    ComponentConfig,
    Engine,
    EsdllmError,
    InputError,
    Message,
    Model,
    load_model,
)
from esdllm.checkpoints import template_worker, templates
from esdllm.checkpoints.templates import ChatTemplate
from esdllm.checkpoints.text import Codec
from esdllm_models.tokenizers import fast_tokenizer

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHAT: list[Message] = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Sort 3 1 2.\nPlease"},
    {"role": "assistant", "content": "1 2 3"},
    {"role": "user", "content": "And 5 4?"},
]
FORMS: Mapping[str, Any] = {
    "a concatenated bos": LLAMA3,
    "eos as separator": "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}",
    "other special tokens": "{{ pad_token }}{{ mask_token }}{{ unk_token }}{{ gmask_token }}{{ messages[0].content }}",
    "named, of which default holds": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": LLAMA3}],
    "blocks on lines of their own": "{%- for m in messages %}\n    {%- if m.role == 'user' %}\n  {{- '<' ~ m.role }}\n    "
    "{%- endif %}\n{% endfor %}\n  {% if add_generation_prompt %}\nA\n{% endif %}",
    "marks of generation": "{% for m in messages %}{% generation %}{% set x = 1 %}{{ m.content }}{% endgeneration %}{{ x }}"
    "{% endfor %}",
    "a loop that is left": "{% for m in messages %}{{ m.content }}{% if loop.index > 1 %}{% break %}{% endif %}{% endfor %}",
    "a loop that goes on": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "JSON": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ '<é>' | tojson }}",
    "a namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "what is not there": "{{ tools is none }}{{ documents }}{{ add_generation_prompt }}{{ nothing }}{{ dict(a=1) }}",
    "the date": "{{ strftime_now('%Y-%m-%d') }}",
    "a macro": "{% macro turn(m) %}{{ m.role | upper }} {{ m['content'] }}{% endmacro %}{% for m in messages %}{{ turn(m) }}"
    "{% endfor %}",
    "a system turn apart": "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{{ messages[0].content }}"
    "{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}{{ m['content'] | trim }}{{ eos_token }}{% endfor %}",
    "text methods": "{{ messages[1].content.split('\n')[-1].strip() }}{{ '%s-%d' % ('a', 2) }}{{ 'x' in messages[0].content }}",
}


@pytest.fixture(scope="module")
def shipped(catalogue: Catalogue) -> Path:
    path: Path = catalogue.build("model", ComponentConfig("llada")).checkpoints["tiny-llada"]
    return path


@pytest.fixture(scope="module")
def tiny(catalogue: Catalogue) -> Model:
    return load_model("tiny-llada", "meta", catalogue=catalogue)


@pytest.fixture
def folder(shipped: Path, tmp_path: Path) -> Path:
    """The shipped checkpoint's tokenizer files."""
    for path in shipped.glob("*.json"):
        shutil.copy(path, tmp_path)
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of tokenizer_config.json; those that are None go."""
    path = folder / "tokenizer_config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}), encoding="utf-8")


def write(folder: Path, name: str, content: Any) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def ours(folder: Path, tiny: Model) -> list[int]:
    return Codec(fast_tokenizer(folder), tiny.spec, "<|eot_id|>", "").encode_chat(CHAT)


def theirs(folder: Path) -> Any:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# ------------------------------------------------------------------------------------- as transformers renders


@pytest.mark.parametrize("form", FORMS)
def test_a_template_renders_as_transformers_renders_it(folder: Path, tiny: Model, form: str) -> None:
    edit(folder, chat_template=FORMS[form], gmask_token="<|eot_id|>")
    assert ours(folder, tiny) == theirs(folder)


def turned(token: str) -> dict[str, Any]:
    return {
        "__type": "AddedToken",
        "content": token,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
    }


def a_file(folder: Path) -> None:
    write(folder, "chat_template.jinja", LLAMA3 + "\n")


def a_file_and_others(folder: Path) -> None:
    a_file(folder)
    write(folder, "additional_chat_templates/tool_use.jinja", "x")


def the_folder_of_others(folder: Path) -> None:
    write(folder, "additional_chat_templates/default.jinja", LLAMA3)


def config_before_a_processor(folder: Path) -> None:
    write(folder, "chat_template.json", {"chat_template": "x"})


def a_bos_with_flags(folder: Path) -> None:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    edit(folder, bos_token={"__type": "AddedToken", "content": "<|startoftext|>", **flags})


def a_bos_of_the_map_alone(folder: Path) -> None:
    edit(folder, bos_token=None, added_tokens_decoder=None)


def a_map_that_does_not_count(folder: Path) -> None:
    write(folder, "special_tokens_map.json", {"bos_token": "<|eot_id|>"})


def a_map_that_counts(folder: Path) -> None:
    edit(folder, added_tokens_decoder=None)
    write(folder, "special_tokens_map.json", {"bos_token": {"content": "<|eot_id|>", "lstrip": False}})


def a_bos_that_is_new(folder: Path) -> None:
    edit(folder, bos_token="<NEW>")


def tokens_of_other_kinds(folder: Path) -> None:
    edit(folder, chat_template="{{ image_token + messages[1].content }}", additional_special_tokens=None)
    edit(folder, extra_special_tokens={"image_token": "<|eot_id|>"})


PLACES = (
    a_file,
    a_file_and_others,
    the_folder_of_others,
    config_before_a_processor,
    a_bos_with_flags,
    a_bos_of_the_map_alone,
    a_map_that_does_not_count,
    a_map_that_counts,
    a_bos_that_is_new,
    tokens_of_other_kinds,
)


@pytest.mark.parametrize("place", PLACES)
def test_templates_and_tokens_are_found_where_transformers_finds_them(
    folder: Path, tiny: Model, place: Callable[[Path], None]
) -> None:
    place(folder)
    assert ours(folder, tiny) == theirs(folder)


def test_a_processors_template_serves_where_there_is_no_other(folder: Path, tiny: Model) -> None:
    edit(folder, chat_template=LLAMA3)
    expected = theirs(folder)
    edit(folder, chat_template=None)
    write(folder, "chat_template.json", {"chat_template": LLAMA3})
    assert ours(folder, tiny) == expected


def test_the_shipped_template_has_the_public_one_s_shape_and_renders_what_was_trained(
    shipped: Path, tiny: Model
) -> None:
    told = json.loads((shipped / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert told["chat_template"] == LLAMA3
    assert tiny.codec
    assert tiny.codec.decode(tiny.codec.encode_chat(CHAT[:2]), keep_special=True) == (
        "<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nSort 3 1 2.\nPlease<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_of_named_templates_without_a_default_none_is_guessed(folder: Path, tiny: Model) -> None:
    edit(folder, chat_template=[{"name": "tool_use", "template": "x"}, {"name": "rag", "template": "y"}])
    with pytest.raises(CheckpointError, match="chat templates are rag, tool_use, and none is named 'default'"):
        ours(folder, tiny)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (5, "a chat template in .* is a int, where text is needed"),
        ([{"name": "default", "template": None}], "a NoneType, where text is needed"),
        ([7], "cannot be read: TypeError"),
        ([{"name": "default"}], "cannot be read: KeyError: 'template'"),
    ],
)
def test_what_is_no_template_leaves_no_codec_and_a_reason(folder: Path, told: Any, message: str) -> None:
    edit(folder, chat_template=told)
    with pytest.raises(CheckpointError, match=message):
        fast_tokenizer(folder)


def test_a_template_sees_all_that_a_turn_says_and_nothing_that_is_none() -> None:
    turns: Any = [{"role": "user", "content": "hi", "name": "Ann", "tool_calls": None}]
    text = "{{ messages[0].name }}{{ messages[0].tool_calls is defined }}"
    assert ChatTemplate(text, {}).render(turns) == "AnnFalse"
    with pytest.raises(
        InputError, match="holds text, numbers, lists and mappings alone; TypeError: Object of type object"
    ):
        ChatTemplate(text, {}).render([{**turns[0], "name": object()}])


# ---------------------------------------------------------------------------------------------- what goes wrong


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_SECONDS", 0.5)


ENDLESS = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
DOUBLED = "{% set ns = namespace(s='xx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}"
NESTED = "{% set ns = namespace(l=(1,)) %}{% for i in range(60) %}{% set ns.l = (ns.l, ns.l) %}{% endfor %}"


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'x'.center(10**9) }}",
        "{{ 'x' | center(10**9) }}",
        "{{ 'x' * 10**9 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ [1] * 10**10 }}",
        "{{ messages | tojson(indent=10**9) }}",
        "{{ (1).to_bytes(10**9, 'big') }}",
        "{{ 'x'.replace('', 'y' * 10**6) * 10**6 }}",
        "{{ ['a' * 10**5] | batch(10**9, 'x') | list }}",
        "{{ 'a\nb' | indent(10**9) }}",
        "{{ 'x'.zfill(10**9) }}",
        "{{ ('y' * 10**5).join('x' * 10**6) }}",
        DOUBLED,
    ],
)
def test_a_template_cannot_take_the_memory(text: str) -> None:
    with pytest.raises(
        CheckpointError, match="chat template takes more than 512 MiB of memory; pass text and chat=False"
    ):
        ChatTemplate(text, {}).render(CHAT)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        ENDLESS,
        "{{ lipsum(n=10**7) }}",
        NESTED + "{{ {ns.l: 1} }}",
        NESTED.replace("(1,)", "[]") + "{{ ns.l }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% set s = 'x' * 5000 %}{% for a in s %}{% for b in s %}{% for c in s %}{% endfor %}{% endfor %}{% endfor %}",
        "{{ 7 ** (7 ** 9) }}",
        "{{ range(100000) | map('center', 9) | map('reverse') | map('list') | sort(attribute='0') | list | length }}"
        * 50,
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_template_cannot_take_the_time(text: str) -> None:
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="the checkpoint's chat template takes more than"):
        ChatTemplate(text, {}).render(CHAT)
    assert time.monotonic() - started < 30
    assert ChatTemplate("{{ messages[2].content }}", {}).render(CHAT) == "1 2 3"


@pytest.mark.parametrize("text", ["{% for i in range(100000) %}{{ 'x' * 100 }}{% endfor %}", "{{ 'x' * 5 * 10**6 }}"])
def test_a_template_cannot_render_without_end(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"chat template renders more than 1\d{6} characters"):
        ChatTemplate(text, {}).render(CHAT)


def test_a_long_conversation_is_rendered_and_named_where_it_is_the_reason() -> None:
    long: list[Message] = [{"role": "user", "content": "x" * 3_000_000}]
    assert ChatTemplate("{{ messages[0].content }}", {}).render(long) == "x" * 3_000_000
    with pytest.raises(
        InputError, match=r"renders more than 1\d+ characters for this conversation of 3000\d+ characters; shorten it"
    ):
        ChatTemplate("{{ messages[0].content * 9 }}", {}).render(long)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (
            "{{ raise_exception('roles must alternate') }}",
            InputError,
            "refuses this conversation: roles must alternate$",
        ),
        ("{{ raise_exception('') }}", InputError, "refuses this conversation: it does not say why"),
        ("{{ raise_exception({'a': 1}) }}", InputError, "refuses this conversation: {'a': 1}"),
        ("{{ nothing + 'a' }}", InputError, "cannot render this conversation: UndefinedError: 'nothing' is undefined"),
        ("{{ messages[9].content }}", InputError, "UndefinedError: list object has no element 9"),
        ("{{ ''.__class__.__mro__ }}", InputError, "SecurityError: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", InputError, "SecurityError: access to attribute 'append'"),
        ("{{ namespace(__x=1) }}", InputError, "SecurityError: a namespace's names do not begin with an underscore"),
        ("{{ 5 + 'a' }}", InputError, "TypeError: unsupported operand"),
        ("{{ 1 / 0 }}", InputError, "ZeroDivisionError"),
        ("{% include 'secret' %}", InputError, "TypeError: no loader"),
        (
            "{{ 'x' | shout }}",
            CheckpointError,
            r"is none of jinja2: TemplateAssertionError: No filter named 'shout'.* \(line 1",
        ),
        ("\n{% if %}", CheckpointError, r"is none of jinja2: TemplateSyntaxError: Expected an expression.*\(line 2\)"),
        (
            "{% for x in messages %}",
            CheckpointError,
            "is none of jinja2: TemplateSyntaxError: Unexpected end of template",
        ),
        ("{% break %}", CheckpointError, "is none of jinja2: SyntaxError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", CheckpointError, "calls itself without end"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", CheckpointError, "calls itself without end"),
    ],
)
def test_what_goes_wrong_in_a_template_is_said_in_a_line(text: str, kind: type[EsdllmError], message: str) -> None:
    with pytest.raises(kind, match=message) as raised:
        ChatTemplate(text, {}).render(CHAT)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1500


def test_a_process_that_dies_is_said_and_the_next_conversation_has_another() -> None:
    text = ChatTemplate("{{ messages[0].role }}", {})
    assert text.render(CHAT) == "system"
    first: Any = templates._WORKER._process
    first.kill()
    first.wait()
    assert text.render(CHAT) == "system"
    assert templates._WORKER._process is not first


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_asks_one_of_its_own() -> None:
    text = ChatTemplate("{{ messages[0].role }}", {})
    text.render(CHAT)
    parents: Any = templates._WORKER._process
    child = os.fork()
    if not child:  # no assertion may leave it
        right = text.render(CHAT) == "system" and templates._WORKER._process is not parents
        templates._WORKER.close()
        os._exit(not right)
    assert os.waitpid(child, 0)[1] == 0
    assert text.render(CHAT) == "system"


@pytest.mark.usefixtures("impatient")
def test_threads_get_their_own_answers_while_one_of_them_hangs() -> None:
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        try:
            text = ENDLESS if number == 3 else "{{ number }}"
            found[number] = ChatTemplate(text, {"number": number}).render(CHAT)
        except CheckpointError:
            found[number] = "late"

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: "late" if number == 3 else str(number) for number in range(8)}


def test_a_ctrl_c_leaves_no_answer_behind_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    ChatTemplate("a", {}).render(CHAT)
    process: Any = templates._WORKER._process

    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(process.stdout, "readline", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ChatTemplate("first", {}).render(CHAT)
    assert ChatTemplate("second", {}).render(CHAT) == "second"


def test_the_worker_answers_whatever_it_is_asked() -> None:
    def asked(template: Any, longest: int = 100, **variables: Any) -> dict[str, str]:
        return template_worker.answer(json.dumps({"template": template, "variables": variables, "longest": longest}))

    assert asked("{{ a }}\ud800", a="é") == {"text": "é\ud800"}
    assert asked("{{ a }}", a=math.inf) == {"text": "inf"}
    assert asked("{{ 'x' * 101 }}")["error"] == "long"
    assert asked("{% for a in a recursive %}{{ loop(b) }}{% endfor %}", a=[1], b=[1])["error"] == "deep"
    assert template_worker.answer("nonsense")["error"] == "failed"
    assert asked(7)["error"] == "failed"


@pytest.mark.serial
def test_an_ordinary_conversation_takes_a_millisecond() -> None:
    template = ChatTemplate(LLAMA3, {"bos_token": "<s>"})
    template.render(CHAT)
    taken = []
    for _ in range(50):
        started = time.perf_counter()
        template.render(CHAT)
        taken.append(time.perf_counter() - started)
    assert min(taken) < 0.01


# ------------------------------------------------------------------------------------------- what comes of it


def test_a_lone_surrogate_is_refused_wherever_it_stands(tiny: Model, folder: Path, catalogue: Catalogue) -> None:
    engine = Engine.build(
        tiny, catalogue.configure("dual-cache", settings={"gen_length": 8, "block_length": 8}), catalogue
    )
    for chat, named in (
        ("a\ud800", "the prompt is not valid UTF-8 at character 1"),
        ([{"role": "user", "content": "ab\udfff"}], "the prompt is not valid UTF-8 at character 2"),
        ([{"role": "us\ud800er", "content": "a"}], r"the role 'us\\ud800er' is not valid UTF-8 at character 2"),
    ):
        with pytest.raises(InputError, match=named):
            engine.generate([chat])  # type: ignore[list-item]
    assert tiny.codec
    with pytest.raises(InputError, match="the text is not valid UTF-8 at character 1"):
        tiny.codec.encode("a\ud800")
    edit(folder, chat_template="{{ 'abc\ud800' }}")
    with pytest.raises(InputError, match="the text is not valid UTF-8 at character 3"):
        ours(folder, tiny)


def test_a_template_that_refuses_one_line_loses_one_line(folder: Path, shipped: Path, tmp_path: Path, run: Any) -> None:
    shutil.copy(shipped / "model.safetensors", folder)
    refusing = (
        "{% if messages|length > 1 %}{{ raise_exception('one turn') }}{% endif %}{{ bos_token + messages[0].content }}"
    )
    edit(folder, chat_template=refusing)
    lines = [[CHAT[1]], CHAT[1:], [CHAT[3]]]
    write(folder, "in.jsonl", "".join(json.dumps({"messages": one}) + "\n" for one in lines))
    out = folder / "out.jsonl"
    words = ("-m", str(folder), "--device", "cpu", "--set", "gen_length=8", "--set", "block_length=8")
    code, _, said = run("generate", "--input", str(folder / "in.jsonl"), "--output", str(out), *words)
    assert code
    assert "line 2" in said
    assert "refuses this conversation: one turn" in " ".join(said.split())
    assert [json.loads(line)["line"] for line in out.read_text(encoding="utf-8").splitlines()] == [1, 3]
