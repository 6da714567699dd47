"""lm-evaluation-harness runs on an engine: what it asks for is what decoding gives, and a likelihood is the bound it claims."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from itertools import combinations
from pathlib import Path
from typing import Any

import attrs
import lm_eval
import pytest
import torch
import yaml
from lm_eval._cli import HarnessCLI
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from esdllm import Catalogue, ConfigError, DecodeConfig, Engine, InputError, Model, UnavailableError, load_model
from esdllm.checkpoints.loading import shipped_checkpoints
from esdllm.cli import main
from esdllm.config import DEFAULT_MODEL, ComponentConfig, read_toml
from esdllm.measure.evaluation.harness import HarnessModel, register
from esdllm.measure.evaluation.requests import Decoding, Wish, before_any
from esdllm.runtime.components import Components
from esdllm.runtime.plain import full_logits
from esdllm.use.likelihood import Likelihood, Pair, all_mask_sets, mask_sets, sampled_mask_sets, windows

SORT, SORTED = "Sort these numbers: 31, 4, 15.", "Sorted from small to large the numbers are 4, 15, 31."
PROMPTS = [SORT, "What is 12 + 7?", "Who are you?", "Sort 9, 3, 27."]
SHORT = {"gen_length": 32, "block_length": 16}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


WHOLE = ("tiny-dream", "tiny-llada")
"""shipped checkpoints whose positions see the whole text, so that a text has a likelihood"""


@pytest.fixture(scope="module", params=sorted(shipped_checkpoints(Catalogue.load())))
def tiny(request: pytest.FixtureRequest, small: dict[str, Path]) -> Model:
    """A checkpoint with a shipped one's tokenizer."""
    return load_model(small[request.param], "cpu", "float32")


@pytest.fixture(scope="module", params=sorted(shipped_checkpoints(Catalogue.load())))
def trained(request: pytest.FixtureRequest) -> Model:
    """A shipped checkpoint, whose answers make sense."""
    return load_model(request.param, "cpu", "float32")


@pytest.fixture(scope="module")
def harness(tiny: Model) -> HarnessModel:
    return HarnessModel(tiny, batch_size=4, mc_samples=16, **SHORT)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


def generate(model: HarnessModel, texts: Sequence[str], **wish: Any) -> list[str]:
    return model.generate_until(requests("generate_until", *((text, wish) for text in texts)))


def conversation(model: Model, *turns: tuple[str, str]) -> str:
    assert model.codec
    tokens = model.codec.encode_chat([{"role": role, "content": text} for role, text in turns])
    return model.codec.decode(tokens, keep_special=True)


# likelihood


def likelihood(model: Model, **options: Any) -> Likelihood:
    config = Catalogue.load().configure("vanilla")
    components = Engine.build(model, config).components
    return Likelihood(model.adapter, components.attention, **options)


@pytest.fixture(params=["llada", "dream"])
def random_model(request: pytest.FixtureRequest) -> Model:
    """A random model without a logit shift, and one with."""
    found: Model = request.getfixturevalue(request.param)
    return found


CONTEXT, CONTINUATION = (5, 17, 100, 33), (42, 7, 200)


def log_probabilities(model: Model, hidden: Sequence[int], continuation: Sequence[int], scale: float = 0.0) -> float:
    """log p of the hidden ones of a continuation, given the others, summed; by the plain pass."""
    spec, start = model.spec, len(CONTEXT)
    shown = [spec.mask_id if i in hidden else token for i, token in enumerate(continuation)]
    logits = full_logits(model.adapter, torch.tensor([[*CONTEXT, *shown]]))[0]
    if scale:
        free = full_logits(model.adapter, torch.tensor([[spec.mask_id] * start + shown]))[0]
        logits = free + (scale + 1) * (logits - free)
    scores = logits.log_softmax(-1)
    return sum(float(scores[start + i - spec.logit_shift, continuation[i]]) for i in hidden)


def exact(model: Model, continuation: Sequence[int], scale: float = 0.0) -> float:
    """The expectation, by the formula: the mean over l of the mean over sets of l positions of L / l times their sum."""
    length, means = len(continuation), []
    for count in range(1, length + 1):
        sums = [log_probabilities(model, s, continuation, scale) for s in combinations(range(length), count)]
        means.append(length / count * sum(sums) / len(sums))
    return sum(means) / length


@pytest.mark.parametrize("scale", [0.0, 0.5])
@pytest.mark.parametrize("length", [2, 3])
def test_few_mask_sets_give_the_expectation_itself(random_model: Model, length: int, scale: float) -> None:
    scorer = likelihood(random_model, samples=128, cfg_scale=scale)
    (found,) = scorer.bounds([Pair(CONTEXT, CONTINUATION[:length])])
    assert found == pytest.approx(exact(random_model, CONTINUATION[:length], scale), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("length", [2, 3])
def test_the_mean_of_many_estimates_is_within_four_standard_errors_of_the_expectation(
    random_model: Model, length: int
) -> None:
    pair, scorer = Pair(CONTEXT, CONTINUATION[:length]), likelihood(random_model, samples=2)
    found = [attrs.evolve(scorer, seed=seed).bounds([pair])[0] for seed in range(400)]
    expected, estimates = exact(random_model, pair.continuation), torch.tensor(found, dtype=torch.float64)
    error = float(estimates.std() / len(found) ** 0.5)
    assert 0 < error < 0.05 * abs(expected)
    assert abs(float(estimates.mean()) - expected) < 4 * error


@pytest.mark.parametrize("samples", [1, 128])
def test_the_bound_of_one_token_is_its_log_probability(random_model: Model, samples: int) -> None:
    (found,) = likelihood(random_model, samples=samples).bounds([Pair(CONTEXT, CONTINUATION[:1])])
    assert found == pytest.approx(log_probabilities(random_model, [0], CONTINUATION[:1]), abs=1e-5)


@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_the_weights_of_all_mask_sets_count_every_token_once(length: int) -> None:
    """With log p = c for every token, the bound is L c."""
    masked, weights = all_mask_sets(length)
    assert len({tuple(row) for row in masked.tolist()}) == 2**length - 1
    assert (masked * weights.unsqueeze(1)).sum(0).tolist() == pytest.approx([1.0] * length)


@pytest.mark.parametrize(("length", "samples"), [(9, 128), (200, 128), (70, 7), (3, 5)])
def test_drawn_mask_sets_have_all_sizes_alike(length: int, samples: int) -> None:
    masked, weights = sampled_mask_sets(length, samples, torch.Generator().manual_seed(3))
    sizes = masked.sum(1)
    assert masked.shape == (samples, length)
    assert (weights * sizes * samples).tolist() == pytest.approx([length] * samples)
    counts = sizes.bincount(minlength=length + 1)[1:]
    assert counts.max() - counts.min() <= 1
    assert sizes.min() >= 1


def test_equal_seeds_give_equal_mask_sets_and_other_seeds_others() -> None:
    assert mask_sets(20, 16, 1).masked.equal(mask_sets(20, 16, 1).masked)
    assert not mask_sets(20, 16, 1).masked.equal(mask_sets(20, 16, 2).masked)


def test_a_bound_is_the_same_in_any_batch(random_model: Model) -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [Pair(CONTEXT[:n], torch.randint(250, (m,), generator=generator).tolist()) for n in (1, 4) for m in (1, 9)]
    alone = [likelihood(random_model, samples=12, batch=1).bounds([pair])[0] for pair in pairs]
    seen: list[int] = []
    scorer = likelihood(random_model, samples=12, batch=5)
    assert scorer.bounds(pairs, seen.append) == pytest.approx(alone, abs=1e-3)
    assert sum(seen) == scorer.rows(pairs) == 2 * (1 + 12)


def test_a_continuation_is_greedy_where_decoding_gives_it(random_model: Model) -> None:
    settings = {"gen_length": 5, "block_length": 5, "delay_eos": False, "early_stop": False}
    config = Catalogue.load().configure("vanilla", settings=settings)
    answer = Engine.build(random_model, config).generate([list(CONTEXT)]).tokens[0, len(CONTEXT) :].tolist()
    others = [[*answer[:i], (answer[i] + 1) % 250, *answer[i + 1 :]] for i in range(len(answer))]
    found = likelihood(random_model, batch=2).greedy([Pair(CONTEXT, tokens) for tokens in [answer, *others]])
    assert found == [True] + [False] * len(others)


@pytest.mark.parametrize("length", [0, 1, 4, 5, 9, 11])
def test_windows_score_every_token_once_and_fit(length: int) -> None:
    tokens = list(range(100, 100 + length))
    found = windows(tokens, 5, [7])
    assert [token for pair in found for token in pair.continuation] == tokens
    assert all(len(pair.context) + len(pair.continuation) <= 5 for pair in found)
    assert [list(pair.context) for pair in found[:1]] == [[7]] * bool(length)
    assert all(tokens.index(pair.context[-1]) + 1 == tokens.index(pair.continuation[0]) for pair in found[1:])


# requests


def decoding(preset: str | None = None, **settings: Any) -> Decoding:
    return Decoding.of(Catalogue.load(), preset, None, settings)


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_a_task_s_length_counts_where_the_configuration_gives_none(name: str) -> None:
    assert decoding("es-dllm").granted(Wish.of({name: 40})).gen_length == 40
    assert decoding("es-dllm").granted(Wish.of({})).gen_length == 256
    assert decoding("es-dllm", gen_length=64).granted(Wish.of({name: 40})).gen_length == 64
    assert decoding("es-dllm/llada-instruct/humaneval").granted(Wish.of({name: 40})).gen_length == 512


@pytest.mark.parametrize(
    ("wish", "options"),
    [
        ({}, {}),
        ({"do_sample": False, "temperature": 0.7}, {}),
        ({"temperature": 0.0, "top_p": 0.9}, {}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
        ({"do_sample": True}, {"temperature": 1.0}),
        (
            {"do_sample": True, "temperature": 0.2, "top_p": 0.9, "top_k": 5},
            {"temperature": 0.2, "top_p": 0.9, "top_k": 5},
        ),
    ],
)
def test_a_task_s_temperature_goes_to_the_sampler(wish: dict[str, Any], options: dict[str, Any]) -> None:
    assert decoding().granted(Wish.of(wish)).sampler == ComponentConfig("gumbel", options)


def test_a_configured_temperature_goes_before_a_task_s() -> None:
    own = decoding(sampler={"name": "gumbel", "temperature": 0.3})
    assert own.granted(Wish.of({"temperature": 0.9, "top_p": 0.5})).sampler.options == {
        "temperature": 0.3,
        "top_p": 0.5,
    }


def test_what_decoding_cannot_heed_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        Wish.of({"num_beams": 7})
        decoding(gen_length=64).granted(Wish.of({"max_gen_toks": 41}))
    assert [record.getMessage() for record in caplog.records] == [
        "the generation argument num_beams = 7 means nothing to esdllm and is ignored",
        "the task asks for 41 tokens; the configuration's gen_length = 64 stands (another: gen_length=N among the model "
        "arguments)",
    ]


def test_a_text_is_cut_at_the_first_of_its_ends() -> None:
    assert before_any("a\nb;c", [";", "\n", "x"]) == "a"
    assert before_any("abc", []) == before_any("abc", ["x"]) == "abc"


# generation


@pytest.mark.slow
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("batch", [1, 4])
def test_answers_are_the_engine_s_in_the_requests_order(tiny: Model, chat: bool, batch: int) -> None:
    vanilla = Catalogue.load().configure("vanilla", settings=SHORT)  # early skipping couples a batch's rows a little
    engine = Engine.build(tiny, vanilla)
    texts = (
        [conversation(tiny, ("user", prompt)) for prompt in PROMPTS] if chat else ["4, 15", "Ada lives in", *PROMPTS]
    )
    found = generate(HarnessModel(tiny, batch_size=batch, preset="vanilla", **SHORT), texts)
    prompts = PROMPTS if chat else texts
    assert found == [(engine.generate(prompt, chat=chat).text or [])[0] for prompt in prompts]
    assert any(found)


@pytest.mark.slow
def test_answers_end_at_the_task_s_texts_and_the_model_s(tiny: Model, harness: HarnessModel) -> None:
    text = conversation(tiny, ("user", SORT))
    (whole,) = generate(harness, [text])
    end = whole[len(whole) // 2 :][:3]
    assert generate(harness, [text], until=[end, "never"]) == [whole[: whole.index(end)]]
    assert generate(HarnessModel(tiny, until=end, **SHORT), [text]) == [whole[: whole.index(end)]]


@pytest.mark.slow
def test_a_repeated_request_gets_the_next_seed(tiny: Model, harness: HarnessModel) -> None:
    text = conversation(tiny, ("user", PROMPTS[2]))
    found = generate(harness, [text] * 3, do_sample=True, temperature=20.0)
    warm = Catalogue.load().configure("es-dllm", settings=SHORT, sets=["sampler.temperature=20.0"])
    assert found == Engine.build(tiny, warm).generate([tiny.codec.encode(text)] * 3, seed=[0, 1, 2]).text
    assert len(set(found)) > 1


def test_an_answer_s_given_beginning_follows_the_conversation(tiny: Model, harness: HarnessModel) -> None:
    turns = [{"role": "user", "content": SORT}, {"role": "assistant", "content": "Sorted from "}]
    text = harness.apply_chat_template(turns, add_generation_prompt=False)
    assert text == conversation(tiny, ("user", SORT)) + "Sorted from "


def test_results_tell_how_to_make_them_again(tiny: Model) -> None:
    model = HarnessModel(tiny, "dual-cache", **{"seed": 3, "refresh.prompt_refresh": 8, "refresh": "periodic"})
    generate(model, ["Ada"], max_gen_toks=8)
    info = json.loads(json.dumps(model.get_model_info()))
    config = Catalogue.load().configure("dual-cache", sets=["seed=3", "refresh=periodic", "refresh.prompt_refresh=8"])
    assert DecodeConfig.from_dict(info["decode_config"]) == config
    assert [used["gen_length"] for used in info["decode_configs_used"]] == [8]
    assert info["mc_samples"] == 128


# lm-eval


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., TaskManager]:
    """Write a task over a local file, and give the manager that knows it."""

    def write(documents: Sequence[dict[str, Any]], **settings: Any) -> TaskManager:
        data = tmp_path / "documents.jsonl"
        data.write_text("".join(json.dumps(document) + "\n" for document in documents))
        config = {
            "task": "local",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
            "test_split": "test",
            "fewshot_split": "test",
            "fewshot_config": {"sampler": "first_n"},
            "doc_to_text": "{{prompt}}",
            **settings,
        }
        (tmp_path / "local.yaml").write_text(yaml.safe_dump(config))
        return TaskManager(include_path=str(tmp_path), include_defaults=False)

    return write


ANSWERS = {
    "output_type": "generate_until",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 32},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def evaluate(model: Any, manager: TaskManager, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = lm_eval.simple_evaluate(model, tasks=["local"], task_manager=manager, **options)
    return found


@pytest.mark.slow
def test_exact_match_counts_the_answers_that_the_engine_gives(trained: Model, task: Callable[..., TaskManager]) -> None:
    engine = Engine.build(trained, Catalogue.load().configure("es-dllm", settings=SHORT))
    texts = engine.generate(PROMPTS, chat=True).text or []
    answers = [*texts[:3], "nothing like it"]
    manager = task([{"prompt": p, "answer": a} for p, a in zip(PROMPTS, answers, strict=True)], **ANSWERS)
    register()
    arguments = {"pretrained": trained, "preset": "es-dllm", **SHORT}
    found = evaluate("esdllm", manager, model_args=arguments, batch_size=2, device="cuda:0", apply_chat_template=True)
    assert found["results"]["local"]["exact_match,none"] == 0.75
    assert found["config"]["decode_config"]["gen_length"] == 32


@pytest.mark.slow
def test_shots_and_system_prompt_come_as_a_conversation(
    tiny: Model, harness: HarnessModel, task: Callable[..., TaskManager]
) -> None:
    documents = [{"prompt": SORT, "answer": SORTED}, {"prompt": "Sort 9, 3, 27.", "answer": "?"}]
    manager = task(documents, **ANSWERS, description="Be brief.", gen_prefix="Sorted")
    found = evaluate(harness, manager, num_fewshot=1, apply_chat_template=True, fewshot_as_multiturn=True)
    (sample,) = (sample for sample in found["samples"]["local"] if sample["doc_id"] == 1)
    turns = ("system", "Be brief."), ("user", SORT), ("assistant", f"Sorted {SORTED}"), ("user", documents[1]["prompt"])
    assert sample["arguments"][0][0] == conversation(tiny, *turns) + "Sorted"


@pytest.mark.slow
@pytest.mark.parametrize("trained", WHOLE, indirect=True)
def test_a_choice_is_the_likeliest_continuation(trained: Model, task: Callable[..., TaskManager]) -> None:
    harness = HarnessModel(trained, batch_size=4, mc_samples=16, **SHORT)
    wrong = SORTED.replace("4, 15, 31", "31, 15, 4")
    manager = task(
        [{"prompt": SORT, "choices": [wrong, SORTED], "answer": 1}],
        output_type="multiple_choice",
        doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}",
        target_delimiter="",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )
    found = evaluate(harness, manager, apply_chat_template=True)
    assert found["results"]["local"]["acc,none"] == 1.0
    pairs = [(conversation(trained, ("user", SORT)), choice) for choice in (wrong, SORTED)]
    again = harness.loglikelihood(requests("loglikelihood", *pairs))
    assert [tuple(resps[0]) for resps in found["samples"]["local"][0]["resps"]] == again
    assert all(score < 0 for score, _ in again)


@pytest.mark.parametrize("tiny", WHOLE, indirect=True)
def test_a_text_s_likelihood_is_its_windows_sum(tiny: Model, harness: HarnessModel) -> None:
    spec, scorer = tiny.spec, likelihood(tiny, samples=16)
    before = [spec.eos_id] if spec.logit_shift else []
    tokens = tiny.codec.encode(SORTED) if tiny.codec else []
    found = harness.loglikelihood_rolling(requests("loglikelihood_rolling", (SORTED,), ("",)))
    assert found == [pytest.approx(scorer.bounds([Pair(before, tokens)])[0], abs=1e-3), 0.0]


@pytest.mark.slow
def test_the_command_gives_what_the_task_says(task: Callable[..., TaskManager], tmp_path: Path) -> None:
    task([{"prompt": SORT, "answer": SORTED}], **ANSWERS)
    arguments = f"pretrained={DEFAULT_MODEL},preset=es-dllm,block_length=16,importance.alpha=0.6"
    words = f"--model esdllm --model_args {arguments} --tasks local"
    more = ["--include_path", str(tmp_path), "--apply_chat_template", "--output_path", str(tmp_path / "out.json")]
    command = [str(Path(sys.executable).parent / "esdllm"), "lm-eval", *words.split(), *more]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TQDM_DISABLE": "1"}, check=False)
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("out*.json")
    found = json.loads(written.read_text())
    assert found["results"]["local"]["exact_match,none"] == 1.0
    assert found["config"]["decode_config"]["importance"]["alpha"] == 0.6
    assert found["config"]["decode_configs_used"][0]["gen_length"] == 32
    assert "|local|" in done.stdout.replace(" ", "")


def test_the_command_hands_every_word_to_lm_eval(capsys: pytest.CaptureFixture[str]) -> None:
    before = list(sys.argv)
    with pytest.raises(SystemExit) as stopped:
        main(["lm-eval", "run", "--help"])
    assert stopped.value.code == 0
    assert "--num_fewshot" in capsys.readouterr().out
    assert sys.argv == before


# the page


PAGE = Path(__file__).parent.parent / "docs" / "evaluate-paper.md"
COMMANDS = re.findall(r"esdllm (lm-eval --model esdllm(?:.*\\\n)*.*)", PAGE.read_text())


def test_the_page_has_a_command_for_each_task_and_model() -> None:
    assert len(COMMANDS) == len(set(COMMANDS)) == 10


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: re.findall(r"preset=([^,]+)", command)[0])
def test_the_page_s_command_parses_and_names_what_exists(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", shlex.split(command.replace("\\\n", " ")))
    given = HarnessCLI().parse_args()
    arguments = given.model_args
    names = {"GSAI-ML/LLaDA-8B-Instruct": "llada-instruct", "Dream-org/Dream-v0-Instruct-7B": "dream-instruct"}
    family, task = names[arguments.pop("pretrained")], given.tasks[0].removeprefix("minerva_")
    assert (arguments.pop("dtype"), arguments.pop("until")) == ("bfloat16", "```")
    assert arguments == {"preset": f"es-dllm/{family}/{task}"}
    Components.resolve(decoding(arguments["preset"]).config, Catalogue.load())
    folders = [Path(lm_eval.__file__).parent / "tasks" / name for name in (given.tasks[0], "benchmarks")]
    assert given.tasks[0] in TaskManager(include_path=folders, include_defaults=False).all_tasks
    assert getattr(given, "confirm_run_unsafe_code", False) == (task in ("humaneval", "mbpp"))
    assert bool(getattr(given, "apply_chat_template", False)) == (task != "humaneval")


def test_the_page_s_lengths_are_the_presets() -> None:
    rows = re.findall(r"^\| \S+ \| `(?:minerva_)?(\w+)` \| .* \| (\d+) \| (\d+) \|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == 5
    for task, gen_length, block_length in rows:
        for family in ("llada-instruct", "dream-instruct"):
            config = decoding(f"es-dllm/{family}/{task}").config
            assert (config.gen_length, config.block_length) == (int(gen_length), int(block_length))


def test_lm_eval_finds_the_model_by_the_entry_point() -> None:
    declared = read_toml(Path(__file__).parent.parent / "pyproject.toml")["project"]["entry-points"]["lm_eval.models"]
    found = EntryPoint("esdllm", declared["esdllm"], "lm_eval.models").load()
    assert found is HarnessModel


# errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"presett": "es-dllm"}, r"unknown model argument 'presett'; did you mean 'preset'\?"),
        ({"importanse.alpha": 0.5}, r"unknown model argument 'importanse.alpha'; did you mean 'importance'\?"),
        ({"importance.alfa": 0.5}, r"has no option 'alfa'; did you mean 'alpha'\?"),
        ({"preset": "es-dlm"}, r"unknown preset 'es-dlm'; did you mean 'es-dllm'\?"),
        ({"batch_size": "auto"}, "batch_size = 'auto': give a whole number from 1"),
        ({"mc_samples": 0}, "mc_samples = 0: give a whole number from 1"),
        ({"until": 3}, "until = 3: give a text or a list of texts"),
        ({"gen_length": "long"}, "setting 'gen_length': 'long' is not an int"),
        ({}, "no model: give pretrained=NAME; known: tiny-"),
    ],
)
def test_a_wrong_model_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HarnessModel.create_from_arg_obj(arguments, {"batch_size": 2, "max_batch_size": None})


def test_what_the_sampler_refuses_is_found_before_anything_is_decoded(tiny: Model) -> None:
    model = HarnessModel(tiny, **SHORT)
    with pytest.raises(ConfigError, match="temperature"):
        model.generate_until(requests("generate_until", ("Ada", {}), ("Ada", {"temperature": -1.0})))
    assert model.get_model_info()["decode_configs_used"] == []


def test_arguments_go_before_what_lm_eval_adds(tiny: Model) -> None:
    model = HarnessModel.create_from_arg_obj({"pretrained": tiny, "batch_size": 3}, {"batch_size": "8"})
    assert model.batch_size == 3
    with pytest.raises(ConfigError, match="pretrained=NAME"):
        HarnessModel.create_from_arg_string("preset=es-dllm,importance.alpha=0.7", {"device": "cpu"})


def test_what_cannot_be_done_is_refused_by_name(llada: Model, tiny: Model, harness: HarnessModel) -> None:
    with pytest.raises(InputError, match=r"lm-eval's tasks are text: .*no tokenizer"):
        HarnessModel(llada)
    with pytest.raises(InputError, match=f"exceeds the model's context of {tiny.spec.context}; lower gen_length or"):
        generate(harness, ["fine", "9 " * tiny.spec.context])
    with pytest.raises(InputError, match="the continuation '' has no token of its own after 'Ada'"):
        harness.loglikelihood(requests("loglikelihood", ("Ada", "")))
    with pytest.raises(InputError, match="the last turn is not the assistant's"):
        harness.apply_chat_template([{"role": "user", "content": "x"}], add_generation_prompt=False)
    with pytest.raises(InputError, match="--apply_chat_template other: templates have no names here"):
        harness.chat_template("other")


def test_without_lm_eval_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "esdllm.measure.evaluation.harness")
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    assert main(["lm-eval", "--tasks", "gsm8k"]) == 2
    assert 'pip install "esdllm[eval]"' in capsys.readouterr().err
    with pytest.raises(UnavailableError, match="lm-eval cannot be imported"):
        import esdllm.measure.evaluation.harness  # noqa: F401
