"""The few examples of the documentation that no test runs, by the reason why."""

from __future__ import annotations

NOT_RUN: dict[str, tuple[str, ...]] = {
    "it installs, or shows the site: tools/check.sh does the same in a fresh environment": (
        "tools/check.sh -c constraints.txt",
        '.venv/bin/pip install -c constraints.txt ".[docs]" && .venv/bin/mkdocs serve',
        'python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e ".[dev]"',
        "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt .",
        "python3 -m venv .venv && .venv/bin/pip install .",
        "source .venv/bin/activate",
        'pip install "esdllm[eval]"',
        'pip install "esdllm[serve]"',
        'pip install "lm-eval[math]"',
        'pip install "esdllm[tune]"',
        'pip install "esdllm[ray]"',
        "pip install ./examples/plugins/esdllm-example-recency",
        "pip install ./examples/plugins/esdllm-example-olmo2",
        "pip install -e './esdllm-nearby[dev]'",
    ),
    "it needs the plugin that the command before it installs; tests/test_examples.py and test_new_plugin.py run these": (
        'esdllm generate "Who are you?" --set importance.name=recency --set importance.reach=4.0',
        "esdllm plugins model",
        "pytest esdllm-nearby",
    ),
    "it takes minutes or hours; its tables stand on the page, and the benchmark's own tests run it smaller": (
        "esdllm bench --geometry small vanilla dual-cache es-dllm es-dllm refresh.prompt_refresh=256 --breakdown --plot "
        "speed.png --json > speed.json",
        "esdllm analyze --prompts problems.jsonl --gen-length 128 --out found",
        "esdllm eval --plot front.png --answers answers.jsonl",
        "esdllm tune --prompts prompts.txt --max-loss 0.05 --out fast.toml -s gen_length=64",
        "esdllm tune -s importance.alpha=0.5 --search importance.site=hidden,key,value --search block_length=16,32,64",
        "esdllm tune -m tiny-llada --batch 1 --count 30 --test-count 60 --trials 30 --search block_length=16,32,64 "
        "--plot tune.png",
        "pytest tests/properties --hypothesis-show-statistics",
        "python benchmarks/blocks.py",
        "python benchmarks/bounds.py",
        "python benchmarks/gpu.py --out gpu",
        "python benchmarks/importance.py",
        "python benchmarks/performance.py measure",
        "python benchmarks/performance.py table",
        "python benchmarks/phenomenon.py",
        "python benchmarks/policies.py",
        "python benchmarks/rules.py",
        "python benchmarks/simulated.py",
        "python benchmarks/ray_workers.py",
        "python benchmarks/stores.py",
        "esdllm simulate --geometry llada-8b --peak-gflops 600000 --peak-gbs 2500 --step-ms 2 --slots 16 --block-length 32",
        "esdllm simulate --geometry llada-8b --peak-gflops 600000 --peak-gbs 2500 --step-ms 2 --slots 16 --replicas 64",
        "python tools/train_tiny/",
        "esdllm eval -m models/esdllm_models/tiny/llada --count 0 --json > scores.json",
    ),
    "it serves until a signal ends it: tests/serving/test_serve_command.py runs it": (
        "esdllm serve --model GSAI-ML/LLaDA-8B-Instruct",
    ),
    "it needs a server that runs: tests/test_bench_serve.py measures one, tests/serving/ ask one": (
        "curl http://127.0.0.1:8000/v1/",
        "esdllm bench serve --url http://127.0.0.1:8000 --rate 1 --rate 2 --rate 4 --requests 100 --plot load.png",
    ),
    "it needs a cluster or containers: tests/cluster and tests/test_deploy.py look at what there is to look at": (
        "ray start ",
        "serve run esdllm.serving.ray:deployment ",
        "docker ",
        "kubectl ",
    ),
    "it downloads, or needs a GPU": (
        'esdllm generate "Why is the sky blue?" --model GSAI-ML/LLaDA-8B-Instruct',
        'esdllm generate "Who are you?" --model ./my-olmo2-diffusion',
        "esdllm generate --input prompts.jsonl --output answers.jsonl --model GSAI-ML/LLaDA-8B-Instruct",
        "esdllm doctor --model GSAI-ML/LLaDA-8B-Instruct",
        "esdllm analyze --prompts problems.jsonl --model GSAI-ML/LLaDA-8B-Instruct",
        "esdllm lm-eval --model esdllm",
        "HF_ALLOW_CODE_EVAL=1 esdllm lm-eval --model esdllm",
    ),
    "it needs a terminal or a compiler: tests/test_cli.py, test_chat.py and test_runtime.py run the same": (
        'esdllm generate "Sort these numbers: 31, 4, 15." --watch',
        "esdllm chat --model GSAI-ML/LLaDA-8B-Instruct",
        'esdllm generate "What is 12 + 7?" --set compile=true',
    ),
}
"""reason -> how each command begins; a command of the pages that begins like none of these is run"""

LONG = (
    "esdllm eval --count ",
    "esdllm tune --task lookup ",
    'esdllm generate "What is 12 + 7?" --config fast.toml',
)
"""how the commands begin that the check leaves out"""
