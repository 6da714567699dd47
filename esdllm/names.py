"""What settings and arguments are called: other tools' names for them, and where those of esdllm belong."""

from __future__ import annotations

__all__ = ["called_here"]

_DTYPE = "dtype, of load_model and Pipeline.from_pretrained; --dtype on the command line"
_FAMILY = "family, of load_model and Pipeline.from_pretrained: sdar,block_size=8; --family on the command line"
_QUANTIZE = "quantize, of load_model and Pipeline.from_pretrained: int8, int8-weight-only or int4-weight-only"
_SEVERAL = "the same prompt as often as you want answers, with a seed each: pipe([prompt] * 3, seed=[1, 2, 3])"
_STOPS = "decided by the checkpoint: Model.stop_ids end an answer, and early_stop = false decodes on behind one"
_ORDER = "an option of the unmasking policy: unmasking.order, such as confidence or random"
_HUB = "left to huggingface_hub: load the folder that its snapshot_download returns"
_PENALTY = "nothing: no sampler that ships has it; a plugin can offer one with the hook esdllm_token_samplers"


def _sampler(name: str) -> str:
    return f"an option of the sampler: sampler.{name}"


def _setting(name: str) -> str:
    return f"a setting: {name}, of Pipeline.from_pretrained, pipe.configured and --set"


_HERE = {
    **dict.fromkeys(
        ("max_new_tokens", "max_tokens", "max_length", "n_predict", "max_gen_toks", "max_completion_tokens", "gen_len"),
        "gen_length, the tokens to generate: a setting",
    ),
    **dict.fromkeys(("temperature", "temp"), _sampler("temperature")),
    **{name: _sampler(name) for name in ("top_p", "top_k")},
    "do_sample": "decided by sampler.temperature, which is 0 for none",
    **dict.fromkeys(
        ("steps", "diffusion_steps", "num_steps", "num_inference_steps"),
        "an option of the unmasking policy top-k: unmasking.steps",
    ),
    **dict.fromkeys(("remasking", "alg"), _ORDER),
    "threshold": "an option of the unmasking policy threshold: unmasking.threshold",
    "alg_temp": "nothing: which positions are committed is not drawn; unmasking.order = random is",
    "block_size": _setting("block_length"),
    **dict.fromkeys(("cfg", "guidance_scale"), _setting("cfg_scale")),
    "mc_num": "mc_samples, a model argument of esdllm lm-eval",
    **dict.fromkeys(("use_cache", "dual_cache", "parallel"), "decided by the preset, such as dual-cache or vanilla"),
    **dict.fromkeys(("num_return_sequences", "best_of", "num_samples"), _SEVERAL),
    "num_beams": f"nothing: all positions are decoded together; for several answers give {_SEVERAL}",
    **dict.fromkeys(
        ("repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size", "min_p", "typical_p"),
        _PENALTY,
    ),
    **dict.fromkeys(("stop", "stop_strings", "stop_sequences", "stopping_criteria"), _STOPS),
    **dict.fromkeys(("eos_token_id", "pad_token_id"), _STOPS),
    "generation_config": "a preset and settings: esdllm.configure",
    **dict.fromkeys(("output_history", "callback"), "an observer: esdllm.StepObserver, observers of Engine.generate"),
    "batch_size": "batch, of pipe(...); --batch on the command line",
    **dict.fromkeys(("input_ids", "inputs", "messages"), "the first argument, without a name"),
    "torch_dtype": _DTYPE,
    **dict.fromkeys(("model_type", "architectures", "hf_overrides"), _FAMILY),
    **dict.fromkeys(("load_in_8bit", "load_in_4bit", "quantization_config"), _QUANTIZE),
    "attn_implementation": "the attention backend: attention = auto, sdpa, eager or another; see esdllm plugins attention",
    "trust_remote_code": "nothing: code of a checkpoint is never run, so leave it out",
    "low_cpu_mem_usage": "nothing: weights are always read straight into place, so leave it out",
    **dict.fromkeys(("revision", "cache_dir", "local_files_only", "force_download", "subfolder"), _HUB),
    # our own, where they do not belong
    "dtype": _DTYPE,
    "quantize": _QUANTIZE,
    "device": "device, of load_model and Pipeline.from_pretrained; --device on the command line",
    "device_map": "device_map, of load_model and Pipeline.from_pretrained",
    **{name: _setting(name) for name in ("gen_length", "block_length", "cfg_scale", "early_stop", "compile")},
    **dict.fromkeys(("seed", "seeds"), "seed: of pipe(...) and Engine.generate, and a setting"),
    "preset": "preset, of Pipeline.from_pretrained, pipe.configured and esdllm.configure; --preset on the command line",
}
"""By name."""


def called_here(name: str) -> str:
    """Return what another tool's name for a setting is here, or where one of ours belongs; empty if nothing is called so."""
    there = _HERE.get(name.lstrip("-").replace("-", "_"))
    return f"here it is {there}" if there else ""
