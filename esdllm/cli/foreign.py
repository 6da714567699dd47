"""Flags and commands of llama.cpp, vLLM, transformers, Ollama and diffusion models' scripts, and what each is here."""

from __future__ import annotations

from collections.abc import Mapping

from esdllm.names import called_here

__all__ = ["command_here", "flag_here"]

_PENALTY = "nothing: no sampler that ships has a penalty; a plugin can offer one with the hook esdllm_token_samplers"
_STOPS = "nothing: what ends an answer is the checkpoint's to say; --set early_stop=false decodes on behind it"
_SERVE = "an option of `esdllm serve`"
_CHAT = "a command: `esdllm chat`"
_SEVERAL = "nothing: for several answers run it several times, each with a --seed of its own"
_GPUS = "nothing: a model is spread over GPUs by device_map, in Python; `esdllm generate --jobs` runs one copy per GPU"
_HUB = "left to the hub's own command, `hf download`; --model then names the folder"

_FLAGS: Mapping[tuple[str, ...], str] = {
    (
        *("max_tokens", "n_predict", "num_predict", "predict", "n", "max_length", "max_gen_toks", "gen_len"),
        *("max_completion_tokens", "new_tokens", "generate_len", "answer_length"),
    ): "--gen-length (or --max-new-tokens)",
    ("temp", "t_sampling"): "--temperature",
    ("topp", "nucleus"): "--top-p",
    ("topk",): "--top-k",
    ("do_sample", "greedy"): "--temperature, which is 0 for the most probable token",
    (
        "model_path",
        "model_name",
        "model_id",
        "model_name_or_path",
        "checkpoint",
        "ckpt",
        "pretrained",
        "hf_repo",
        "hf",
    ): ("--model"),
    ("prompt", "text", "query"): "the first argument, in quotes; -p is --preset",
    ("file", "f", "prompt_file", "input_file", "infile", "prompts_file", "dataset"): "--input FILE, or - and < FILE",
    ("output_file", "outfile", "out_file", "save", "results"): "--output FILE, with --input FILE",
    ("batch_size", "b", "bs"): "--batch",
    ("num_workers", "workers", "nproc"): "--jobs",
    ("random_seed", "rng_seed"): "--seed",
    ("block_size", "block_len"): "--block-length",
    ("steps", "diffusion_steps", "num_steps", "num_inference_steps", "timesteps"): "--set unmasking.steps=N",
    ("remasking", "alg"): "--set unmasking.order=NAME, such as confidence or random",
    ("threshold", "confidence_threshold"): "--set unmasking.threshold=X, of --set unmasking=threshold",
    ("cfg", "cfg_scale", "guidance_scale"): "--set cfg_scale=X",
    ("use_cache", "cache", "dual_cache", "if_cache", "parallel_decoding"): "--preset, such as vanilla or dual-cache",
    ("torch_dtype", "precision", "type"): "--dtype",
    ("load_in_8bit", "load_in_4bit", "quantization", "quant", "q8", "int8"): "--quantize KIND, such as int8",
    ("n_gpu_layers", "gpu_layers", "ngl", "gpu", "cuda", "cpu"): "--device, such as cuda or cpu",
    ("device_map", "tensor_parallel_size", "tp", "pipeline_parallel_size", "tensor_split", "split_mode"): _GPUS,
    ("threads", "t", "threads_batch"): "the variable OMP_NUM_THREADS",
    ("ctx_size", "c_size", "n_ctx", "num_ctx", "max_model_len", "max_seq_len", "context_length"): (
        "as long as the prompt and --gen-length; `esdllm serve` and `esdllm doctor` have --length"
    ),
    ("stream", "streaming"): "--watch, which shows the canvas while it is denoised",
    ("interactive", "i", "conversation", "interactive_first", "multiline_input"): _CHAT,
    ("system_prompt", "sys", "system_message"): "--system, of `esdllm chat`",
    ("system",): "an option of `esdllm chat`",
    (
        "verbose",
        "v",
        "traceback",
        "log_level",
    ): "--debug, which shows the traceback of an error; --watch shows the canvas",
    ("format", "output_format", "response_format"): "--json",
    ("stop", "reverse_prompt", "r", "stop_sequences", "eos_token_id", "ignore_eos"): _STOPS,
    (
        *("repeat_penalty", "repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size"),
        *("min_p", "typical", "typical_p", "mirostat", "logit_bias", "grammar"),
    ): _PENALTY,
    ("num_beams", "num_return_sequences", "best_of", "num_samples"): _SEVERAL,
    ("host", "port", "api_key", "served_model_name"): _SERVE,
    ("max_num_seqs", "parallel", "np", "max_concurrency"): "--slots, of `esdllm serve`",
    (
        "gpu_memory_utilization",
        "swap_space",
    ): "nothing: `esdllm doctor` says what fits, `esdllm serve --slots auto` takes that",
    ("lora", "adapter", "lora_modules"): "--model, which takes a folder with an adapter_config.json too",
    ("tokenizer", "tokenizer_mode"): "nothing: the tokenizer is the checkpoint's",
    ("chat_template", "apply_chat_template", "jinja"): "--chat or --no-chat; the template is the checkpoint's",
    ("trust_remote_code",): "nothing: code of a checkpoint is never run, so leave it out",
    ("revision", "cache_dir", "local_files_only", "download_dir", "token"): _HUB,
    (
        "flash_attn",
        "fa",
        "attn_implementation",
        "attention_backend",
    ): "--set attention=NAME; see `esdllm plugins attention`",
    ("enforce_eager",): "--set compile=false, which holds unless compile is set",
    ("profile",): "--breakdown, of `esdllm bench`; elsewhere --profile names one of esdllm.toml",
}
_FLAG = {name: here for names, here in _FLAGS.items() for name in names}

_COMMANDS: Mapping[tuple[str, ...], str] = {
    (
        "run",
        "complete",
        "completion",
        "completions",
        "prompt",
        "ask",
        "decode",
        "sample",
        "answer",
        "infer",
        "predict",
    ): ('generate "PROMPT"` or `esdllm chat'),
    ("talk", "repl", "interactive"): "chat",
    ("fill", "fim", "edit", "inpaint"): "infill",
    ("list", "ls", "ps", "tags"): "models list",
    ("pull", "download", "fetch", "get"): "models pull NAME",
    ("show", "info", "inspect"): "models show NAME",
    ("server", "api", "start"): "serve",
    ("benchmark", "perf", "speed"): "bench",
    ("evaluate", "evaluation", "test"): "eval",
    ("env", "check", "status", "collect-env", "diagnose"): "doctor",
    ("settings", "configuration"): "config show",
    ("presets",): "plugins preset",
    ("components",): "plugins",
    ("optimize", "search", "autotune"): "tune",
    ("new", "init", "create"): "new-plugin",
    ("version",): "--version",
    ("help",): "--help",
}
_COMMAND = {name: here for names, here in _COMMANDS.items() for name in names}


def flag_here(flag: str) -> str:
    """Return what another tool's flag is here; empty if nothing is called so."""
    there = _FLAG.get(flag.lstrip("-").replace("-", "_").lower())
    return f"here it is {there}" if there else called_here(flag)


def command_here(name: str) -> str:
    """Return which command another tool's command is here; empty if nothing is called so."""
    here = _COMMAND.get(name.lower())
    return f"here it is `esdllm {here}`" if here else ""
