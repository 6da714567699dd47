"""The command's laws: the answer on standard output and nothing else, errors in one line, plans without weights."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from threading import Thread

import attrs
import pytest
from rich.console import Console

import esdllm
from esdllm.checkpoints.loading import shipped_checkpoints
from esdllm.cli import main, shared
from esdllm.cli.choice import Choice
from esdllm.cli.explain import keep_text
from esdllm.cli.shared import counted
from esdllm.cli.watch import ProgressBar, Watch, layer_bars
from esdllm.config import DEFAULT_MODEL
from esdllm.plan import StepPlan
from esdllm.plugins.catalogue import KINDS, Catalogue

DATA = Path(__file__).parent / "conformance"
RANDOM = str(DATA / "llada-0")
SHORT = ["--gen-length", "16", "--block-length", "8"]


@pytest.fixture
def run(capsys):
    """Run the command; give its exit code, standard output and standard error."""

    def command(*words: str) -> tuple[int, str, str]:
        code = main(words)
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return command


# generate


@pytest.mark.slow
def test_answer_is_alone_on_standard_output(run):
    code, out, err = run("generate", "Sort 3 1 2.", *SHORT)
    told = json.loads(run("generate", "Sort 3 1 2.", *SHORT, "--json")[1])
    assert code == 0
    assert out == told["text"] + "\n"
    assert err.splitlines()[-1].startswith(f"{len(told['answer'])} tokens in {told['forwards']} forwards, ")
    assert err.splitlines()[-1].partition(", compute ")[0].endswith("tokens/s, preset es-dllm")


@pytest.mark.slow
def test_default_model_is_named_and_a_given_one_is_not(run):
    assert DEFAULT_MODEL in shipped_checkpoints(esdllm.Catalogue.load())
    assert DEFAULT_MODEL in run("generate", "Hello", *SHORT)[2]
    assert len(run("generate", "Hello", "--model", DEFAULT_MODEL, *SHORT)[2].splitlines()) == 1


def test_json_says_what_the_engine_says(run):
    told = json.loads(run("generate", "Hello", *SHORT, "--json", "--preset", "dual-cache", "--seed", "3")[1])
    config = esdllm.configure("dual-cache", settings={"gen_length": 16, "block_length": 8, "seed": 3})
    assert esdllm.DecodeConfig.from_dict(told["config"]) == config
    model = esdllm.load_model("tiny-llada", device="cpu")
    expected = esdllm.Engine.build(model, config).generate("Hello", chat=True)
    assert told["tokens"] == expected.tokens[0].tolist()
    assert told["answer"] == expected.answers[0]
    assert (told["forwards"], told["layer_share"]) == (expected.forwards, expected.layer_share)
    assert told["tokens_per_forward"] == expected.tokens_per_forward
    assert told["canvas_tokens_per_forward"] == expected.canvas_tokens_per_forward
    assert told["tokens_per_second"] == pytest.approx(len(told["answer"]) / told["seconds"])
    assert told["preset"] == "dual-cache"


def test_dash_reads_standard_input(run, monkeypatch):
    expected = run("generate", "Hello", *SHORT)[1]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    assert run("generate", "-", *SHORT)[1] == expected


def test_blanks_are_filled_and_the_filled_text_is_alone_on_standard_output(run, monkeypatch):
    text = "The smallest number is [MASK:2], or [MASK]."
    found = esdllm.Pipeline.from_pretrained("tiny-llada", device="cpu").infill(text)
    code, out, err = run("infill", text, "--model", "tiny-llada", "--device", "cpu")
    assert (code, out) == (0, found.text + "\n")
    assert err.splitlines()[-1].startswith("3 tokens, 3 forwards, ")
    told = json.loads(run("infill", text, "--model", "tiny-llada", "--json")[1])
    assert (told["text"], told["fills"]) == (found.text, list(found.fills))
    monkeypatch.setattr(sys, "stdin", io.StringIO(text + "\n"))
    assert run("infill", "-", "--model", "tiny-llada")[1] == out


def test_blanks_that_hold_no_text_are_told(run, monkeypatch):
    infill = esdllm.Pipeline.infill
    monkeypatch.setattr(
        esdllm.Pipeline, "infill", lambda *words, **facts: attrs.evolve(infill(*words, **facts), fills=("", "a", " "))
    )
    assert "2 blanks got ends of the text, which are no text" in run("infill", "a [MASK] b")[2]


@pytest.mark.slow
def test_chat_template_is_used_unless_refused(run):
    def length(*words):
        return len(json.loads(run("generate", "Hello", *SHORT, "--json", *words)[1])["tokens"])

    assert length() == length("--chat") > length("--no-chat")


def test_standard_input_that_is_no_text_is_refused(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    code, out, err = run("generate", "-", *SHORT, "--model", "tiny-llada")
    assert (code, out) == (2, "")
    assert err == "error: standard input is not valid utf-8 at byte 3; convert it first, say with iconv\n"


@pytest.mark.slow
def test_watch_without_a_terminal_says_so_and_prints_the_result(run):
    code, out, err = run("generate", "Hello", *SHORT, "--watch", "--model", "tiny-llada")
    assert (code, out) == (0, run("generate", "Hello", *SHORT)[1])
    assert err.splitlines()[0] == "standard error is no terminal: nothing to watch on"
    assert len(err.splitlines()) == 2


# what is shown while denoising


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=80, legacy_windows=False)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_watching_changes_no_token_and_shows_every_step():
    model = esdllm.load_model("tiny-llada", device="cpu")
    config = esdllm.configure("es-dllm", settings={"gen_length": 16, "block_length": 8, "early_stop": False})
    engine, console = esdllm.Engine.build(model, config), terminal()
    plain = engine.generate("Hello", chat=True)
    with Watch(console, model.codec, "title", pace=0.0) as view:
        watched = engine.generate("Hello", chat=True, observers=[view])
    assert watched.tokens.equal(plain.tokens)
    assert view.forwards == watched.forwards
    assert f"forward {watched.forwards} · block 2 · 16 of 16 decided" in written(console)
    assert 0 < view.seconds < watched.seconds


class Interrupting(ProgressBar):
    def __init__(self):
        super().__init__(terminal())

    def show(self, record):
        raise KeyboardInterrupt


def test_a_run_that_fails_gives_the_terminal_back():
    console = terminal()
    model = esdllm.load_model(RANDOM)
    engine = esdllm.Engine.build(model, esdllm.configure("vanilla", settings={"gen_length": 8}))
    with pytest.raises(KeyboardInterrupt), ProgressBar(console) as view:
        engine.generate([[1, 2, 3]], observers=[view, Interrupting()])
    assert written(console).rindex("\x1b[?25h") > written(console).rindex("\x1b[?25l")


def test_ctrl_c_while_watching_prints_what_is_decided_and_gives_the_screen_back(run, monkeypatch):
    consoles: list[Console] = []

    def shown() -> Console:
        consoles.append(terminal())
        return consoles[-1]

    monkeypatch.setattr("esdllm.cli.generate.stderr", shown)
    step = Watch.step

    def interrupted(self, record):
        step(self, record)
        if self.forwards == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "step", interrupted)
    code, out, _ = run("generate", "Hello", *SHORT, "--watch", "--model", "tiny-llada", "--preset", "es-dllm")
    told = "".join(map(written, consoles))
    assert code == 130
    assert "interrupted: 6 of 16 tokens decided in 6 forwards" in re.sub(r"\x1b\[[0-9;]*m", "", told)
    assert told.rindex("\x1b[?25h") > told.rindex("\x1b[?25l")  # the cursor is back
    model, settings = esdllm.load_model("tiny-llada", device="cpu"), {"gen_length": 16, "block_length": 8}
    whole = esdllm.Engine.build(model, esdllm.configure("es-dllm", settings=settings)).generate("Hello", chat=True)
    pieces = [piece for piece in out.rstrip("\n").split("…") if piece]
    text = model.codec.decode(whole.tokens[0, -16:].tolist())
    assert pieces
    assert all(piece in text for piece in pieces)


def test_what_fills_up_a_last_block_is_no_part_of_the_watched_answer():
    model = esdllm.load_model("tiny-sdar", device="cpu")
    config = esdllm.configure("es-dllm-parallel", settings={"gen_length": 10, "block_length": 8, "early_stop": False})
    with Watch(terminal(), model.codec, "title", pace=0.0, most=10) as view:
        esdllm.Engine.build(model, config).generate("Hello", chat=True, observers=[view])
    assert view.frame.decided == len(view.frame.tokens) == 10


def test_answers_and_notes_wrap_at_words_on_a_terminal_and_nowhere_else(monkeypatch, capsys):
    text = "I can describe a person, look up facts, sort numbers and write functions.\n    return x + 1\n\nend"
    shared.print_answer(text)
    shared.stderr().print(text, soft_wrap=True)
    told = capsys.readouterr()
    assert told.out == told.err == text + "\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    shared.print_answer(text)
    shared.stderr().print(text, soft_wrap=True)
    told = capsys.readouterr()
    for lines in (told.out.splitlines(), told.err.splitlines()):
        assert max(map(len, lines)) <= 40
        assert " ".join(" ".join(lines).split()) == " ".join(text.split())
        assert "    return x + 1" in [line.rstrip() for line in lines]


def test_layer_bars_fall_with_what_layers_compute():
    assert layer_bars(StepPlan(64, 64, 64, (64, 32, 8, 8), ()), 64) == "██▄▁"
    assert len(layer_bars(StepPlan(64, 64, 64, (64,) * 80, ()), 64)) <= 32


# plugins


def test_plugins_lists_every_component_of_every_kind(run):
    catalogue = esdllm.Catalogue.load()
    listed = json.loads(run("plugins", "--json")[1])
    assert [(one["kind"], one["name"]) for one in listed] == [(one.kind, one.name) for one in catalogue.entries()]
    assert all(one["summary"] and one["plugin"] and one["package"] and one["version"] for one in listed)
    code, out, _ = run("plugins")
    lines = out.splitlines()
    assert code == 0
    assert len(KINDS) == 12
    assert all(f"{kind}  {hook}" in lines for kind, hook in KINDS.items())
    assert {name for kind in KINDS for name in catalogue.names(kind) if "/" not in name} <= set(out.split())
    assert set(shipped_checkpoints(catalogue)) <= set(out.replace(",", " ").split())


def test_published_presets_are_one_line_until_they_are_asked_for(run):
    named = {name for name in esdllm.Catalogue.load().names("preset") if "/" in name}
    lines = [line.split()[:2] for line in run("plugins")[1].splitlines()]
    for beginning, number in Counter(name.partition("/")[0] for name in named).items():
        assert [f"{beginning}/...", str(number)] in lines
    assert named <= set(run("plugins", "preset")[1].split())


def test_plugins_tells_every_option_with_its_default_and_help(run):
    for one in json.loads(run("plugins", "--json")[1]):
        assert one["kind"] != "preset" or not one["options"]
        for option in one["options"]:
            assert option["help"], (one["name"], option)
            assert option["required"] is False


def test_plugins_of_one_kind(run):
    assert {one["kind"] for one in json.loads(run("plugins", "skip", "--json")[1])} == {"skip"}
    out = run("plugins", "skip")[1]
    assert "[[0.0, 1.0], [0.125, 0.5], [0.25, 0.25]]" in out
    assert "[[depth, ratio], ...]" in out


def test_disabled_plugins_are_told(run, monkeypatch):
    monkeypatch.setenv("ESDLLM_DISABLE_PLUGINS", "esdllm-models")
    _, out, err = run("plugins", "model")
    assert "none installed" in out
    assert "esdllm-models" in err


# explain


def explained(run, *words):
    code, out, _ = run("explain", "--json", *words)
    assert code == 0
    return json.loads(out)


def test_explain_reads_no_weights(run, tmp_path):
    shutil.copy(DATA / "llada-0" / "config.json", tmp_path)
    assert explained(run, "--model", str(tmp_path), "--gen-length", "32")["forwards"] == 32


def test_vanilla_is_the_full_computation(run):
    told = explained(run, "--model", RANDOM, "--preset", "vanilla", "--gen-length", "32")
    assert told["layer_share"] == 1.0
    assert [(plan["steps"], plan["positions"], plan["share"]) for plan in told["plans"]] == [(8, 96, 1.0)] * 4
    assert [plan["decided"] for plan in told["plans"]] == [32, 24, 16, 8]


@pytest.mark.parametrize(
    ("preset", "doubt"),
    [
        ("vanilla", 1e-9),
        ("prefix-cache", 1e-9),
        ("dual-cache", 1e-9),
        ("es-dllm", 0.005),  # where a block's first window begins is the logits' choice
    ],
)
def test_the_plan_is_what_a_run_does(run, preset, doubt):
    words = ["--set", "early_stop=false", "--gen-length", "20", "--block-length", "8", "--prompt-length", "5"]
    told = explained(run, "--model", RANDOM, "--preset", preset, *words)
    engine = esdllm.Engine.build(esdllm.load_model(RANDOM), esdllm.DecodeConfig.from_dict(told["config"]))
    result = engine.generate([[1, 2, 3, 4, 5]])
    assert told["forwards"] == result.forwards == sum(plan["steps"] for plan in told["plans"])
    assert told["layer_share"] == pytest.approx(result.layer_share, abs=doubt)
    assert told["refreshes"] == sum(plan["steps"] for plan in told["plans"] if plan["kind"] == "refresh")


def test_explain_says_where_the_logits_decide(run):
    assert explained(run, "--preset", "es-dllm-parallel")["one_position_a_step_assumed"]
    assert not explained(run, "--preset", "es-dllm")["one_position_a_step_assumed"]
    assert "The logits decide" in run("explain", "--preset", "es-dllm-parallel")[1]


def test_explain_shows_every_option(run):
    out = run("explain", "--set", "refresh.block_refresh=4")[1]
    for setting in ("prompt_refresh=64", "block_refresh=4", "alpha=0.5", "gen_length=256", "compile=false"):
        assert setting in out


def test_dumped_configuration_is_read_back_equal(run, tmp_path):
    choices = ["--preset", "es-dllm/dream-base/math", "--set", "importance.alpha=0.25", "--gen-length", "99"]
    dumped = run("explain", *choices, "--toml")[1]
    (tmp_path / "mine.toml").write_text(dumped)
    assert run("explain", "--config", str(tmp_path / "mine.toml"), "--toml")[1] == dumped
    assert "config mine.toml" in run("explain", "--config", str(tmp_path / "mine.toml"))[1].splitlines()[0]


def test_later_choices_go_over_earlier_ones(run, tmp_path):
    (tmp_path / "base.toml").write_text('preset = "dual-cache"\ngen_length = 40\nblock_length = 20\n')
    told = explained(run, "--config", str(tmp_path / "base.toml"), "--gen-length", "30", "--set", "block_length=10")
    assert told["preset"] == "dual-cache"
    assert (told["config"]["gen_length"], told["config"]["block_length"]) == (30, 10)
    assert explained(run, "--set", "preset=vanilla")["preset"] == "vanilla"


def test_one_is_counted_as_one():
    assert [counted(n, "forward") for n in (0, 1, 2)] == ["0 forwards", "1 forward", "2 forwards"]


def test_keep_counts_are_folded():
    assert keep_text((64, 32, 32, 8)) == "64 x1, 32 x2, 8 x1"


# conformance


@pytest.mark.slow
def test_conformance_that_passes_exits_with_0(run):
    code, out, err = run("conformance", str(DATA), "--model", "llada-0", "--mode", "prefix_cache")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].endswith(" passed, 0 failed")


@pytest.mark.slow
def test_a_mode_goes_by_its_preset_s_name_too(run):
    words = ("conformance", str(DATA), "--model", "llada-0", "--mode")
    assert run(*words, "prefix-cache") == run(*words, "prefix_cache")


@pytest.mark.slow
def test_conformance_with_settings_over_the_cases(run):
    words = ("conformance", str(DATA), "--model", "llada-0", "--mode", "prefix_cache")
    assert run(*words, "--set", "attention=eager")[0] == 0
    code, out, _ = run(*words, "--set", "cfg_scale=1.0")
    assert code == 1
    assert "FAILED" in out


def test_conformance_that_fails_names_the_case_and_exits_with_1(run, tmp_path):
    case = next(case for case in json.loads((DATA / "cases.json").read_text()) if case["model"] == "llada-0")
    shutil.copytree(DATA / "llada-0", tmp_path / "llada-0", ignore=shutil.ignore_patterns("logits.safetensors"))
    case["sequences"][0][-1] += 1
    (tmp_path / "cases.json").write_text(json.dumps([case]))
    code, out, _ = run("conformance", str(tmp_path))
    assert code == 1
    assert out.splitlines()[0].startswith(f"FAILED {case['id']}: row 0, column ")
    assert out.splitlines()[-1] == "0 passed, 1 failed"


# errors


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", "hi", "--preset", "es-dlm"], "unknown preset 'es-dlm'; did you mean 'es-dllm'?"),
        (["generate", "hi", "--set", "importance.alhpa=1.0"], "did you mean 'alpha'?"),
        (["generate", "hi", "--set", "gen_lenght=1"], "did you mean 'gen_length'?"),
        (["generate", "hi", "--set", "importance.alpha"], "write setting=value or section.option=value"),
        (["generate", "hi", "--model", "tiny-lada"], "did you mean 'tiny-llada'?"),
        (["generate", "hi", "--model", RANDOM], "text needs a tokenizer"),
        (["generate", "", "--model", "tiny-llada"], "is empty"),
        (["generate", "hi", "--model", "tiny-llada", "--device", "gpu"], "the device 'gpu' is not available"),
        (["generate", "hi", "--model", "tiny-llada", "--dtype", "float15"], "did you mean 'float16'?"),
        (
            ["generate", "hi", "--model", "tiny-llada", "--gen-length", "5000"],
            "leaves no room for a prompt",
        ),
        (["generate", "hi", "--seed", "-1", "--model", "tiny-llada"], "seed"),
        (["generate", "hi", "--config", "no-such.toml"], "cannot read the configuration no-such.toml"),
        (["generate", "hi", "--set", "preset=3"], "preset = 3"),
        (["generate", "hi", "--presett", "x"], "--preset"),
        (["generate", "hi", "--gen-length", "many"], "--gen-length"),
        (["generate"], "PROMPT"),
        (["decode"], "decode"),
        (["plugins", "skips"], "did you mean 'skip'?"),
        (["explain", "--gen-length", "5000"], "lower --prompt-length or --gen-length"),
        (["explain", "--preset", "es-dllm", "--set", "cache=none"], "dense"),
        (["conformance", "no-such-folder"], "tests/conformance of a clone"),
        (["conformance", str(DATA), "--mode", "skip"], "modes: dual_cache, early_skip, logits, prefix_cache, vanilla"),
        (["conformance", str(DATA), "--model", "llama"], "models: dream-0, "),
        (["generate", "hi", "there"], "put the prompt in quotes (see esdllm generate --help)"),
        (["explain", "--json", "--toml"], "give one"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(run, words, said):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_debug_shows_the_traceback(run):
    code, _, err = run("explain", "--preset", "es-dlm", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: unknown preset")


def test_interrupting_is_quiet(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(esdllm.Catalogue, "load", interrupted)
    code, out, err = run("plugins")
    assert (code, out + err.strip()) == (130, "")


class Panic(BaseException):
    """As pyo3's PanicException, which is no Exception."""


FAULTS = [
    (RuntimeError("broken\nand more"), 3, "unforeseen RuntimeError: broken; `--debug` or ESDLLM_DEBUG=1 shows"),
    (Panic("x" * 10_000), 3, f"unforeseen Panic: {'x' * 300}; "),
    (KeyError(), 3, "unforeseen KeyError; "),
    (RecursionError("maximum recursion depth exceeded"), 3, "unforeseen RecursionError: maximum recursion depth"),
    (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), 3, "unforeseen UnicodeEncodeError: "),
    (OSError(28, "No space left on device", "a.jsonl"), 2, "No space left on device: a.jsonl"),
    (OSError(5, "Input/output error"), 2, "Input/output error"),
    (MemoryError(), 2, "this does not fit into memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 2, "this does not fit"),
    (esdllm.InputError("a\n" * 10_000), 2, "a a a"),
]


@pytest.mark.parametrize(("error", "expected", "said"), FAULTS, ids=lambda value: repr(value)[:30])
def test_an_error_that_nobody_foresaw_is_one_line_that_says_how_to_see_more(run, monkeypatch, error, expected, said):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr(esdllm.Catalogue, "load", broken)
    code, out, err = run("plugins")
    assert (code, out) == (expected, "")
    (line,) = err.splitlines()
    assert line.startswith(f"error: {said}")
    assert len(line) < 5000
    assert (expected == 3) is ("please report it" in line)
    monkeypatch.setenv("ESDLLM_DEBUG", "1")
    assert "Traceback" in run("plugins")[2]


def test_output_that_nobody_reads_any_more_is_no_error(run, monkeypatch):
    def closed(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr(esdllm.Catalogue, "load", closed)
    assert run("plugins") == (141, "", "")


def test_no_plugin_ships_a_checkpoint(run, monkeypatch):
    monkeypatch.setenv("ESDLLM_DISABLE_PLUGINS", "esdllm-models")
    code, _, err = run("generate", "hi")
    assert code == 2
    assert "--model" in err


# help


@pytest.mark.parametrize("command", ["generate", "explain", "plugins", "conformance"])
def test_help_gives_examples_and_fits(run, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(command, "--help")
    assert code == 0
    assert out.count(f"  esdllm {command} ") + out.count(f"| esdllm {command} ") >= 2
    assert max(map(len, out.splitlines())) <= 80


def test_without_a_command_the_help_is_printed(run):
    code, out, _ = run()
    assert code == 0
    assert all(name in out for name in ("generate", "explain", "plugins", "conformance"))


@pytest.mark.slow
def test_installed_command_tells_its_version():
    words = [sys.executable, "-c", "import sys; from esdllm.cli import main; sys.exit(main())", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == f"esdllm {esdllm.__version__}\n"


def test_a_configuration_that_can_be_read_once_is_read_once(tmp_path: Path) -> None:
    """As from a pipe: `--config <(generator)`."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    Thread(target=pipe.write_text, args=('preset = "vanilla"\ngen_length = 16\n',), daemon=True).start()
    choice = Choice(None, pipe, None, {})
    config = choice.config(Catalogue.load())
    assert (config.gen_length, choice.base()) == (16, "vanilla")
    assert choice.label() == "preset vanilla, config pipe"


@pytest.mark.slow
def test_options_are_weighed_a_pattern_is_kept_to_and_a_text_is_edited(run):
    code, out, _ = run("choose", "What is 12 + 7?", "The result is 12 + 7 = 18.", "The result is 12 + 7 = 19.")
    assert (code, out.splitlines()[0]) == (0, "100.0%  The result is 12 + 7 = 19.")
    assert (
        run("match", "What is 12 + 7?", "--pattern", "The [^.]+12[^.]+[.]", "--gen-length", "16")[1]
        == "The result is 12 + 7 = 19.\n"
    )
    told = run("edit", "The result is 12 + 7 = 18.", "--instruction", "What is 12 + 7?", "--json")[1]
    assert json.loads(told)["changes"] == [[" 18", " 19"]]
