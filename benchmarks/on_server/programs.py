"""Programs that ask servers of OpenAI's API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from on_server.ground import DECODING, ESDLLM, KEY, MODEL, TURNS, Served

__all__ = ["curl_client", "guidellm_client", "harness_client"]

PROBLEMS = 8  # of each task


def curl_client(served: Served) -> Iterator[str]:
    """Try curl."""

    def curl(*options: str, body: dict[str, Any] | None = None) -> str:
        data = ["-H", "content-type: application/json", "-d", json.dumps({"model": MODEL, **body})] if body else []
        command = ["curl", "-sS", "--fail-with-body", "-H", f"authorization: Bearer {KEY}", *options, *data]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    said = served.chat()
    told = json.loads(curl(f"{served.base}/chat/completions", body={"messages": TURNS}))
    assert told["choices"][0]["message"]["content"] == said
    yield "chat"
    lines = curl("-N", f"{served.base}/chat/completions", body={"messages": TURNS, "stream": True}).splitlines()
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    deltas = [json.loads(one)["choices"][0]["delta"] for one in data[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == said
    yield "-N stream"
    assert json.loads(curl(f"{served.url}/health"))["status"] == "ready"
    assert "esdllm:generation_tokens_total" in curl(f"{served.url}/metrics")
    yield "health, metrics"


def guidellm_client(served: Served) -> Iterator[str]:
    """Try guidellm's benchmark, some 32 requests four at a time, on each endpoint."""
    prompts = served.folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"1 2 {n}"}) + "\n" for n in range(10, 60)))
    tokenizer = _shipped()
    for path in ("/v1/chat/completions", "/v1/completions"):
        written = served.folder / f"guidellm{path.replace('/', '-')}.json"
        backend = f"kind=openai_http,target={served.url},model={MODEL},request_format={path},api_key={KEY}"
        command = [sys.executable, "-m", "guidellm", "run", "--backend", backend, "--disable-console"]
        command += [
            "--data",
            f"kind=json_file,path={prompts}",
            "--tokenizer",
            f"kind=huggingface_auto,model={tokenizer}",
        ]
        command += ["--profile", "kind=concurrent,streams=4", "--constraint", "kind=max_requests,count=32"]
        command += ["--output", f"kind=json,path={written}"]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=served.folder)
        assert ran.returncode == 0, ran.stderr[-2000:]
        (found,) = json.loads(written.read_text())["benchmarks"]
        totals = found["metrics"]["request_totals"]
        assert totals["successful"] >= 30, totals
        assert totals["errored"] == 0, totals
        yield f"{path.removeprefix('/v1/')}: {totals['successful']} answered, none with an error"


def harness_client(served: Served) -> Iterator[str]:
    """Try lm-eval's `local-completions`: its scores of shipped problems are those of `esdllm eval`."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    lines = (_shipped().parent / "problems.jsonl").read_text().splitlines()
    there = [problem for line in lines if (problem := json.loads(line))["split"] == "test"]
    tasks = dict.fromkeys(problem["task"] for problem in there)
    taken = [problem for task in tasks for problem in [one for one in there if one["task"] == task][:PROBLEMS]]
    problems = served.folder / "problems.jsonl"
    problems.write_text("".join(json.dumps(problem) + "\n" for problem in taken))
    command = [*ESDLLM, "eval", "--model", MODEL, "--suite", str(problems), *DECODING, "--batch", "8", "--json"]
    ours = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    (contender,) = ours["contenders"]
    (served.folder / "shipped.yaml").write_text(json.dumps(_harness_task(problems)))  # JSON is YAML
    os.environ["OPENAI_API_KEY"] = KEY
    theirs = simple_evaluate(
        "local-completions",
        model_args={
            "model": MODEL,
            "base_url": f"{served.base}/completions",
            "tokenizer": str(_shipped()),
            "num_concurrent": 4,
            "max_length": 1024,
        },
        tasks=["shipped"],
        task_manager=TaskManager(include_path=str(served.folder), include_defaults=False),
        apply_chat_template=True,
        verbosity="ERROR",
    )
    scores = theirs["results"]["shipped"]["exact_match,strip"], contender["exact_match"]["value"]
    assert scores[0] == scores[1], scores
    yield f"generate_until: {scores[0]:.3f} of {len(taken)} right, as `esdllm eval`"


def _harness_task(problems: Path) -> dict[str, Any]:
    """Return a task of lm-eval."""
    return {
        "task": "shipped",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(problems)}, "cache_dir": str(problems.parent / "cache")},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [], "max_gen_toks": 64},
        "filter_list": [{"name": "strip", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


def _shipped() -> Path:
    """Return the folder of the model's tokenizer."""
    import esdllm_models

    return Path(esdllm_models.__file__).parent / "tiny" / "llada"
