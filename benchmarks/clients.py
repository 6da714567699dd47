"""Real clients, unmodified, against a real `esdllm serve`: what each asks for, and what works.

    pip install openai litellm langchain-openai guidellm "esdllm[serve,eval]"
    python benchmarks/clients.py

Every answer is compared with the one that a bare HTTP request gets. A client that is not installed is named, and left
out. Editors and pages that are no Python packages are there by the bodies that their public source sends.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import attrs
import httpx
import typer
from rich.console import Console
from rich.table import Table

KEY = "key-of-the-clients"
MODEL = "tiny-llada"
ASKED = "What is 12 + 7?"
BEGUN = "The result is 12 +"
TURNS = [{"role": "user", "content": ASKED}]
QUEUE = 8
PROBLEMS = 8  # of each task
ESDLLM = (sys.executable, "-m", "esdllm")
DECODING = ("--preset", "es-dllm-parallel", "--gen-length", "64", "--block-length", "16")
Check = Callable[["Served"], Iterator[str]]


@attrs.frozen
class Served:
    """A server, and what it answers."""

    url: str
    folder: Path
    """for files"""

    @property
    def base(self) -> str:
        """What clients call the base URL."""
        return f"{self.url}/v1"

    def post(self, path: str, **body: Any) -> httpx.Response:
        """Return the answer to a bare request."""
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.post(self.base + path, json={"model": MODEL, **body}, headers=headers, timeout=120)

    def chat(self, **body: Any) -> str:
        """Return the text of an answer to `TURNS`."""
        said: str = self.post("/chat/completions", messages=TURNS, **body).json()["choices"][0]["message"]["content"]
        assert said
        return said

    def continued(self, **body: Any) -> str:
        """Return how `BEGUN` goes on, without the chat template."""
        said: str = self.post("/completions", prompt=BEGUN, **body).json()["choices"][0]["text"]
        assert said
        return said


@attrs.frozen
class Client:
    """A client, and how it is tried."""

    name: str
    check: Check
    """yields what works, and raises at what does not"""
    package: str | None = None
    """whose version is told; without it, the client is not run"""
    program: str | None = None
    """that must be there"""

    def version(self) -> str | None:
        """Return its version; None if it is not installed."""
        if self.program is not None:
            told = shutil.which(self.program) and subprocess.run(
                [self.program, "--version"], capture_output=True, text=True
            )
            return told.stdout.split()[1] if told else None
        if self.package is None:
            return "by its source"
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None


def openai_client(served: Served) -> Iterator[str]:
    """Try OpenAI's own client."""
    import openai

    client = openai.OpenAI(base_url=served.base, api_key=KEY, max_retries=0)
    ask: Any = client.chat.completions.create
    asked: dict[str, Any] = {"model": MODEL, "messages": TURNS}
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    yield "models"
    said = served.chat()
    assert ask(**asked).choices[0].message.content == said
    yield "chat"
    chunks = list(ask(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == said
    assert chunks[-1].usage.completion_tokens == ask(**asked).usage.completion_tokens
    yield "stream, usage"
    client_async = openai.AsyncOpenAI(base_url=served.base, api_key=KEY, max_retries=0)
    assert asyncio.run(_openai_async(client_async)) == [said] * 5
    yield "async, async stream"
    assert client.completions.create(model=MODEL, prompt=BEGUN).choices[0].text == served.continued()
    yield "completions"
    rows = ask(**asked, n=3, seed=5, temperature=1.0).choices
    alone = [served.chat(seed=seed, temperature=1.0) for seed in (5, 6, 7)]
    assert [row.message.content for row in rows] == alone
    yield "n"
    cut = ask(**asked, stop=[said[5:8], "never"])
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == (said[:5], "stop")
    yield "stop"
    tokens = ask(**asked, logprobs=True).choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == said
    assert all(token.logprob <= 0 for token in tokens)
    yield "logprobs"
    yield from _openai_errors(openai, client)


async def _openai_async(client: Any) -> list[str]:
    """Return what is said to four at once, and to a stream."""

    async def once() -> Any:
        return (await client.chat.completions.create(model=MODEL, messages=TURNS)).choices[0].message.content

    said = list(await asyncio.gather(*(once() for _ in range(4))))
    stream = await client.chat.completions.create(model=MODEL, messages=TURNS, stream=True)
    return [*said, "".join([chunk.choices[0].delta.content or "" async for chunk in stream])]


def _openai_errors(openai: Any, client: Any) -> Iterator[str]:
    def asking(client: Any = client, **over: Any) -> Any:
        return client.chat.completions.create(**{"model": MODEL, "messages": TURNS, **over})

    yield _raised(openai.BadRequestError, lambda: asking(temperature=3.0))
    yield _raised(openai.AuthenticationError, lambda: asking(client.with_options(api_key="another")))
    yield _raised(openai.NotFoundError, lambda: asking(model="another"))
    yield _raised(openai.RateLimitError, lambda: asking(n=64))


def _raised(kind: type[Exception], act: Callable[[], Any]) -> str:
    """Return the name of the error that something is answered with."""
    try:
        act()
    except kind:
        return kind.__name__
    raise AssertionError(f"there is no {kind.__name__}")


def litellm_client(served: Served) -> Iterator[str]:
    """Try LiteLLM, which aider and many agents ask through."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it is fetched
    import litellm

    asked: dict[str, Any] = {"model": f"openai/{MODEL}", "messages": TURNS, "api_base": served.base, "api_key": KEY}
    said = served.chat()
    assert litellm.completion(**asked).choices[0].message.content == said
    yield "completion"
    parts = litellm.completion(**asked, stream=True, stream_options={"include_usage": True})
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == said
    yield "stream"

    async def asking() -> str:
        answer = await litellm.acompletion(**asked)
        stream = await litellm.acompletion(**asked, stream=True)
        assert answer.choices[0].message.content == said
        return "".join([part.choices[0].delta.content or "" async for part in stream])

    assert asyncio.run(asking()) == said
    yield "async, async stream"
    text = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}", prompt=BEGUN, api_base=served.base, api_key=KEY
    )
    assert text.choices[0].text == served.continued()
    yield "text_completion"
    yield _raised(litellm.BadRequestError, lambda: litellm.completion(**asked, seed=-5, num_retries=0))
    yield _raised(litellm.AuthenticationError, lambda: litellm.completion(**{**asked, "api_key": "another"}))


def langchain_client(served: Served) -> Iterator[str]:
    """Try LangChain's two models of OpenAI."""
    from langchain_openai import ChatOpenAI, OpenAI

    chat = ChatOpenAI(model=MODEL, base_url=served.base, api_key=KEY, max_retries=0)
    said = served.chat()
    assert chat.invoke(ASKED).content == said
    yield "invoke"
    assert "".join(part.content for part in chat.stream(ASKED)) == said
    yield "stream"
    assert [answer.content for answer in chat.batch([ASKED] * 3)] == [said] * 3
    yield "batch"
    assert asyncio.run(chat.ainvoke(ASKED)).content == said
    yield "ainvoke"
    text = OpenAI(model=MODEL, base_url=served.base, api_key=KEY, max_retries=0, temperature=0)
    told = served.continued(max_tokens=256)
    assert text.invoke(BEGUN) == told
    yield "OpenAI.invoke"


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
    """Try guidellm's benchmark, 32 requests four at a time, on each endpoint."""
    prompts = served.folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"The result is {n} +"}) + "\n" for n in range(10, 42)))
    tokenizer = shipped_tokenizer()
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
        assert (totals["successful"], totals["errored"]) == (32, 0), totals
        yield f"{path.removeprefix('/v1/')}: 32 of 32"


def harness_client(served: Served) -> Iterator[str]:
    """Try lm-eval's `local-completions`: its scores of shipped problems are those of `esdllm eval`."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    lines = (shipped_tokenizer().parent / "problems.jsonl").read_text().splitlines()
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
            "tokenizer": str(shipped_tokenizer()),
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


def shipped_tokenizer() -> Path:
    """Return the folder of the model's tokenizer."""
    import esdllm_models

    return Path(esdllm_models.__file__).parent / "tiny" / "llada"


def _spoken(lines: Iterator[str]) -> str:
    """Return the text of a stream, read as editors read it: what is no event's data is left out."""
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    choices = [chunk["choices"][0] for one in data if (chunk := json.loads(one))["choices"]]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content") or "" for choice in choices)


def _stream(served: Served, path: str, **body: Any) -> str:
    headers = {"authorization": f"Bearer {KEY}", "x-api-key": KEY, "accept": "application/json"}
    asked = {"model": MODEL, "stream": True, **body}
    with httpx.stream("POST", served.base + path, json=asked, headers=headers, timeout=120) as answer:
        assert answer.status_code == 200, answer.read()
        return _spoken(answer.iter_lines())


def continue_calls(served: Served) -> Iterator[str]:
    """Send what the editor extension Continue sends, by `packages/openai-adapters/src/apis/OpenAI.ts`."""
    options = {"include_usage": True}
    assert _stream(served, "/chat/completions", messages=TURNS, max_tokens=64, stream_options=options) == served.chat()
    yield "chat"
    blank = {"prompt": "The result is 12 +", "suffix": " = 19.", "max_tokens": 4}
    stops = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>", "/src/", "#- coding: utf-8", "```"]
    told = _stream(served, "/fim/completions", **blank, temperature=0.01, stop=stops)
    whole = served.post("/fim/completions", **blank, temperature=0.01, stop=stops).json()
    assert told == whole["choices"][0]["message"]["content"]
    yield "fim"


def zed_calls(served: Served) -> Iterator[str]:
    """Send what the editor Zed sends, by `crates/open_ai/src/open_ai.rs` and `crates/edit_prediction/src/fim.rs`."""
    options = {"include_usage": True}
    more = {"max_completion_tokens": 64, "prompt_cache_key": "thread", "parallel_tool_calls": False}
    assert _stream(served, "/chat/completions", messages=TURNS, stream_options=options, **more) == served.chat()
    yield "chat"
    named = ("endoftext", "file_separator", "fim_pad", "fim_prefix", "fim_middle", "fim_suffix")
    stops = [f"<|{name}|>" for name in named] + ["<PRE>", "<SUF>", "<MID>", "[PREFIX]", "[SUFFIX]"]
    prompt = "<|fim_prefix|>The result is 12 +<|fim_suffix|> = 19.<|fim_middle|>"
    body = {"prompt": prompt, "max_tokens": 16, "temperature": None, "stop": stops, "environment": None}
    answer = served.post("/completions", **body)
    assert answer.status_code == 200, answer.text
    assert {"id", "choices"} <= answer.json().keys()
    yield "edit predictions (a prompt for models trained on fim; answers are read)"


def open_webui_calls(served: Served) -> Iterator[str]:
    """Send what a proxy between Open WebUI 0.12 and a server recorded."""
    yield ""


CLIENTS = (
    Client("openai", openai_client, "openai"),
    Client("litellm", litellm_client, "litellm"),
    Client("langchain-openai", langchain_client, "langchain-openai"),
    Client("curl", curl_client, program="curl"),
    Client("guidellm", guidellm_client, "guidellm"),
    Client("lm-eval", harness_client, "lm-eval"),
    Client("Continue", continue_calls),
    Client("Zed", zed_calls),
    Client("Open WebUI", open_webui_calls),
)


@contextmanager
def serving() -> Iterator[Served]:
    """Serve the shipped model by the command, at a free port, until the end."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        keys, log = folder / "keys", folder / "log"
        keys.write_text(KEY + "\n")
        command = [*ESDLLM, "serve", "--model", MODEL, "--port", "0", "--api-key-file", str(keys), *DECODING]
        with log.open("w") as told:
            process = subprocess.Popen(
                [*command, "--slots", "4", "--max-queue", str(QUEUE)], stdout=subprocess.DEVNULL, stderr=told
            )
        try:
            yield Served(_address(process, log), folder)
        finally:
            process.terminate()
            process.wait(60)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return where a server serves, as soon as it says so."""
    while not (found := re.search(r" at (http://\S+?),", log.read_text())):
        if process.poll() is not None:
            raise RuntimeError(log.read_text())
        time.sleep(0.1)
    return found[1]


def tried(client: Client, served: Served) -> tuple[list[str], str]:
    """Return what works, and what failed."""
    works: list[str] = []
    try:
        works.extend(client.check(served))
    except Exception as error:
        return works, f"{type(error).__name__}: {error}"[:500]
    return works, ""


def main(only: Annotated[list[str] | None, typer.Option(help="Client; may be given several times.")] = None) -> None:
    """Try clients on a server that is started for it."""
    console, failed = Console(), False
    table = Table("client", "version", "works", "fails", title=f"Clients of `esdllm serve --model {MODEL}`")
    with serving() as served:
        for client in CLIENTS:
            if only and client.name not in only:
                continue
            if (number := client.version()) is None:
                table.add_row(client.name, "not installed", "", "")
                continue
            works, fails = tried(client, served)
            failed |= bool(fails)
            table.add_row(client.name, number, ", ".join(works), fails)
    console.print(table)
    raise typer.Exit(failed)


if __name__ == "__main__":
    typer.run(main)
