"""What other tools call their flags and commands is answered with what it is here; a flag means one thing wherever it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import esdllm
from esdllm.cli import main
from esdllm.cli.app import app
from esdllm.cli.prompts import read_prompts
from esdllm.errors import InputError, grouped
from esdllm.use.batching.rows import read_lines

FLAGS = {
    "-n 3": "--gen-length",
    "--n-predict=3": "--gen-length",
    "--max-tokens 3": "--gen-length",
    "--max_completion_tokens 3": "--gen-length",
    "--num-predict 3": "--gen-length",
    "--temp 0.5": "--temperature",
    "--do-sample": "--temperature, which is 0",
    "--model-name-or-path x": "--model",
    "-hf x": "--model",
    "--prompt x": "the first argument, in quotes; -p is --preset",
    "-f x": "--input FILE",
    "--batch-size 3": "--batch",
    "-ngl 99": "--device",
    "--n-gpu-layers 99": "--device",
    "--tensor-parallel-size 2": "nothing: .*device_map",
    "-t 4": "the variable OMP_NUM_THREADS",
    "--ctx-size 4096": "as long as the prompt and --gen-length",
    "--stream": "--watch",
    "--conversation": "a command: `esdllm chat`",
    "-i": None,
    "--system-prompt x": "--system, of `esdllm chat`",
    "--verbose": "--debug",
    "--format json": "--json",
    "--repeat-penalty 1": "nothing: no sampler",
    "--min-p 0.1": "nothing: no sampler",
    "--num-beams 4": "nothing: .* --seed",
    "--torch-dtype float16": "--dtype",
    "--load-in-8bit": "--quantize KIND",
    "--trust-remote-code": "nothing: .* never run, so leave it out",
    "--port 80": "an option of `esdllm serve`",
    "--steps 8": "--set unmasking.steps=N",
    "--diffusion-steps 8": "--set unmasking.steps=N",
    "--remasking low_confidence": "--set unmasking.order",
    "--alg entropy": "--set unmasking.order",
    "--cfg 1": "--set cfg_scale=X",
    "--block-size 8": "--block-length",
    "--use-cache": "--preset",
    "--lora x": "--model, which takes a folder with an adapter_config.json too",
    "--revision main": "left to the hub's own command",
    "--flash-attn": "--set attention=NAME",
    "--mc-num 3": "mc_samples",
}


@pytest.mark.parametrize("words", [words for words, here in FLAGS.items() if here])
def test_a_flag_of_another_tool_is_answered_with_what_it_is_here(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "hi", *words.split()]) == 2
    assert re.match(
        rf"error: No such option: {words.split()[0].partition('=')[0]}; here it is {FLAGS[words]}",
        capsys.readouterr().err,
    )


def test_what_is_answered_names_flags_that_there_are() -> None:
    import typer

    from esdllm.cli.foreign import _FLAG

    group = typer.main.get_command(app)
    commands = [group.get_command(typer.Context(group), name) for name in group.list_commands(typer.Context(group))]
    members = [one for command in commands for one in getattr(command, "commands", {}).values()]
    known = {option for command in (*commands, *members) for param in command.params for option in param.opts}
    known |= {option for command in commands for param in command.params for option in param.secondary_opts}
    named = {flag for here in _FLAG.values() for flag in re.findall(r"--[a-z][a-z-]+", here)}
    assert named <= known
    own = {
        option
        for command in commands
        if command.name == "generate"
        for param in command.params
        for option in param.opts
    }
    assert {f"--{name.replace('_', '-')}" for name in _FLAG} & own == {"--profile"}  # which is told of `bench` alone


@pytest.mark.parametrize(
    ("words", "here"),
    [
        (["generate", "hi", "--max_new_tokens", "8"], "did you mean --max-new-tokens?"),
        (["generate", "hi", "--top_k", "8"], "did you mean --top-k?"),
        (["generate", "hi", "--Seed", "8"], "did you mean --seed?"),
        (["generate", "hi", "there"], "put the prompt in quotes"),
        (["generate", "-p", "Tell me a story"], "reads like a prompt, which stands without an option"),
        (["bench", "--profile"], "here it is --breakdown"),
        (["run", "llama3"], 'here it is `esdllm generate "PROMPT"` or `esdllm chat`'),
        (["list"], "here it is `esdllm models list`"),
        (["ps"], "here it is `esdllm models list`"),
        (["pull", "x"], "here it is `esdllm models pull NAME`"),
        (["version"], "here it is `esdllm --version`"),
        (["help"], "here it is `esdllm --help`"),
        (["benchmark"], "Did you mean 'bench'?"),
        (["generat"], "Did you mean 'generate'?"),
        (["generate", "--batch"], "Option '--batch' requires an argument"),
        (["generate", "--gen-lenght", "3"], "--gen-length"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_one(
    words: list[str], here: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert not out
    assert here in err
    assert len(err.splitlines()) == 1


def test_a_flag_is_the_setting_and_goes_under_set(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--temperature", "0.7", "--top-p", "0.9", "--top-k", "40", "--max-new-tokens", "32", "--block-length", "8"]
    assert main(["config", "show", "--json", *flags, "-s", "sampler.top_k=5"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["config"]["sampler"] == {"name": "gumbel", "temperature": 0.7, "top_p": 0.9, "top_k": 5}
    assert told["config"]["gen_length"] == 32
    assert told["origins"]["sampler.temperature"] == "--temperature"
    for wrong, why in (("--temperature=-1", "'temperature' must be >= 0"), ("--top-p=1.5", "'top_p' must be <= 1")):
        assert main(["generate", "hi", wrong]) == 2
        assert why in capsys.readouterr().err


def test_a_short_flag_means_one_thing_in_all_commands() -> None:
    import typer

    group = typer.main.get_command(app)
    context = typer.Context(group)
    commands = [group.get_command(context, name) for name in group.list_commands(context)]
    every = [*commands, *(one for command in commands for one in getattr(command, "commands", {}).values())]
    meant: dict[str, set[str]] = {}
    for param in (param for command in every for param in command.params):
        for option in param.opts:
            if option in ("--profile",) or re.fullmatch("-[a-z]", option):
                longest = max(param.opts, key=len)
                meant.setdefault(option, set()).add("a file" if longest in ("--output", "--out") else longest)
    assert {option: names for option, names in meant.items() if len(names) > 1} == {}
    assert meant["-p"] == {"--preset"}


def test_prompts_and_input_read_the_same_kinds_of_file(tmp_path: Path) -> None:
    texts = ["Who are you?", 'Say "a, b"']
    written = {
        "a.txt": 'Who are you?\n\nSay "a, b"\r\n',
        "a.TXT": '\ufeffWho are you?\nSay "a, b"',
        "plain": 'Who are you?\nSay "a, b"',
        "a.jsonl": "".join(json.dumps({"prompt": text}) + "\n" for text in texts),
        "a.csv": 'id,prompt\n1,Who are you?\n2,"Say ""a, b"""\n',
    }
    for name, text in written.items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        assert [line.prompt for line in read_lines(tmp_path / name)[0]] == texts
        assert read_prompts([], tmp_path / name) == texts
    for name, text, why in (
        ("b.json", "{}", r"files named \*.json are not known; name a .csv, .jsonl, .parquet, .txt"),
        (
            "b.jsonl",
            '{"prompt": "x"}\n{"messages": [{"role": "user", "content": "y"}]}\n',
            "line 2: it is a conversation",
        ),
        ("b.csv", "text\nx\n", "no column 'prompt'"),
        ("b.txt", "\n \n", "holds no prompt"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=why):
            read_prompts([], tmp_path / name)
    (tmp_path / "c.txt").write_bytes(b"good\nb\xffad\n")
    assert [(bad.number, bad.reason[:21]) for bad in read_lines(tmp_path / "c.txt")[1]] == [
        (2, "it is not valid UTF-8")
    ]


def test_many_names_are_told_by_their_beginnings() -> None:
    names = esdllm.Catalogue.load().names("preset")
    told = grouped(names)
    assert "es-dllm" in told
    assert f"es-dllm/... ({sum(name.startswith('es-dllm/') for name in names)})" in told
    assert len(told) < len(names) / 2
    gsm8k = "es-dllm/llada-base/gsm8k"
    for near in ("es-dllm/llada-base/gsm", "es-dllm/llada-base", "es-dllm/llada-base/"):
        assert gsm8k in grouped(names, near)
        assert all(name.startswith("es-dllm/llada-base/") for name in grouped(names, near))
    assert all(name.startswith("es-dllm/") for name in grouped(names, "es-dllm/llama/gsm8k"))
    assert grouped(["b", "a/x", "a/y"]) == ["a/x", "a/y", "b"]
