"""The model `esdllm` of lm-evaluation-harness: any of its tasks, decoded by an engine or scored by a likelihood bound.

    esdllm lm-eval --model esdllm --model_args pretrained=tiny-llada,preset=es-dllm --tasks gsm8k --apply_chat_template

lm-eval 0.4.13 looks models up in a registry that only code can add to, so a process has to call `register` before lm-eval's
command or `simple_evaluate(model="esdllm")` can know the name: `esdllm lm-eval` does. Where lm-eval reads entry points of the
group `lm_eval.models` (its main branch), the package's own suffices. An instance of `HarnessModel` needs neither.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from esdllm.checkpoints.loading import Model, load_model, shipped_checkpoints
from esdllm.config import DecodeConfig
from esdllm.errors import ConfigError, InputError, UnavailableError, installing, known
from esdllm.interfaces import TextCodec
from esdllm.measure.evaluation.requests import Decoding, Wish, before_any, seeds_of, settings_of, strings, whole
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.components import Components
from esdllm.runtime.engine import Engine
from esdllm.use.likelihood import Likelihood, Pair, groups, windows
from esdllm.views import Message

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import MODEL_REGISTRY, register_model
    from lm_eval.utils import simple_parse_args_string
except ImportError as error:  # optional; this module alone needs it
    raise UnavailableError(f"lm-eval cannot be imported ({error}): {installing('eval')}") from error

__all__ = ["HarnessModel", "register", "run"]

_DEFAULT_DEVICE = "cuda:0"
"""what lm-eval's command passes where no device is given, whether there is such a device or not"""


class HarnessModel(LM):  # type: ignore[misc]  # lm-eval is not typed
    """A diffusion language model as lm-eval sees one. The arguments are its `--model_args`."""

    def __init__(
        self,
        pretrained: str | Model | None = None,
        preset: str | None = None,
        config: Path | str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        quantize: str | None = None,
        compute: str | None = None,
        family: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        mc_samples: int = 128,
        mc_batch_size: int = 16,
        until: str | Sequence[str] = (),
        **settings: Any,
    ) -> None:
        """Load a model and build its engine.

        `pretrained` is what `load_model` takes, or a loaded model. `until` ends every answer, beside what the task says.
        `mc_samples` mask sets, `mc_batch_size` a pass, estimate a likelihood (see `Likelihood`). `settings` are those of
        `DecodeConfig`, and `section.option=value`; `config` is a TOML file of them.

        Raises:
            ConfigError: an argument that is unknown or out of range.
            CheckpointError: no such checkpoint.
            InputError: a checkpoint without a tokenizer.
        """
        super().__init__()
        self._catalogue = Catalogue.load()
        self.batch_size, self._until = whole("batch_size", batch_size), strings("until", until)
        samples, rows = whole("mc_samples", mc_samples), whole("mc_batch_size", mc_batch_size)
        self._decoding = Decoding.of(self._catalogue, preset, config, settings_of(settings, _ARGUMENTS))
        Components.resolve(self._decoding.config, self._catalogue)  # wrong options, before weights are read
        if pretrained is None:
            raise ConfigError(f"no model: give pretrained=NAME; {known('', shipped_checkpoints(self._catalogue))}")
        device = None if device == _DEFAULT_DEVICE and not torch.cuda.is_available() else device
        if isinstance(pretrained, Model):
            self.name, self.model = pretrained.spec.family, pretrained
        else:
            self.name = str(pretrained)
            held: Any = {"quantize": quantize, "compute": compute, "family": family}
            self.model = load_model(pretrained, device, dtype, self._catalogue, **held)
        self._device, self._codec = self.model.adapter.device, _codec(self.model)
        self._engine = Engine.build(self.model, self._decoding.config, self._catalogue)
        seed, scale = self._decoding.config.seed, self._decoding.config.cfg_scale
        self._likelihood = Likelihood(self.model.adapter, self._engine.components.attention, samples, rows, seed, scale)
        self._used: list[DecodeConfig] = []

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> HarnessModel:
        """Return the model of `key=value,key=value`; see `create_from_arg_obj`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> HarnessModel:
        """Return the model of a mapping of arguments; they go before what lm-eval adds (batch size, device)."""
        added = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**{**added, **arg_dict})

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the answers to requests of (context, generation arguments), in their order.

        What the configuration gives (`gen_length`, the sampler's temperature, top_p and top_k) goes before what a
        request asks for. A request that is repeated gets another seed each time.

        Raises:
            InputError: a prompt that the context has no room for; before anything is decoded.
            ConfigError: a request asks the sampler for what it does not offer; before that too.
        """
        wishes = [Wish.of(request.args[1]) for request in requests]
        configs = [self._decoding.granted(wish) for wish in wishes]
        prompts = [self._codec.encode(request.args[0]) or [self.model.spec.eos_id] for request in requests]
        for prompt, config in zip(prompts, configs, strict=True):
            self._check_room(len(prompt), config.gen_length)
        kinds = [repr(config) for config in configs]
        for config in dict(zip(kinds, configs, strict=True)).values():
            Components.resolve(config, self._catalogue)
        asked = list(zip(kinds, map(tuple, prompts), strict=True))
        seeds, answers = seeds_of(asked, self._decoding.config.seed), [""] * len(requests)
        with _progress("decoding", len(requests)) as advance:
            for group in groups(kinds):
                engine, order = self._engine_of(configs[group[0]]), sorted(group, key=lambda i: -len(prompts[i]))
                for rows in (order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)):
                    found = engine.generate([prompts[i] for i in rows], seed=[seeds[i] for i in rows])
                    for i, text in zip(rows, found.text or (), strict=True):
                        answers[i] = before_any(text, (*wishes[i].until, *self._until))
                        self.cache_hook.add_partial("generate_until", requests[i].args, answers[i])
                    advance(len(rows))
        return answers

    def _engine_of(self, config: DecodeConfig) -> Engine:
        """Return the engine of a configuration; one at a time, for each holds its cache."""
        if self._engine.config != config:
            self._engine = Engine.build(self.model, config, self._catalogue)
        if config not in self._used:
            self._used.append(config)
        return self._engine

    def _check_room(self, given: int, more: int) -> None:
        context = self.model.spec.context
        if given + more > context:
            raise InputError(
                f"a request of {given} tokens and {more} after them exceeds the model's context of {context}; lower "
                "gen_length or --num_fewshot"
            )

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return for requests of (context, continuation) a bound of the log-probability, and whether decoding gives it.

        See `Likelihood.bounds` and `Likelihood.greedy`.

        Raises:
            InputError: a pair that is longer than the model's context, or a continuation without a token.
        """
        pairs = [self._pair(*request.args) for request in requests]
        found = list(zip(self._scores(pairs), self._likelihood.greedy(pairs), strict=True))
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Return a bound of the log-probability of whole texts.

        A text longer than the model's context is scored in windows of as many tokens, every token once; a window's
        context is the token before it, the last window's as much as there is room for.
        """
        context = self.model.spec.context
        texts = [windows(self._codec.encode(request.args[0]), context, self._before()) for request in requests]
        scores = iter(self._scores([pair for pairs in texts for pair in pairs]))
        found = [sum((next(scores) for _ in pairs), 0.0) for pairs in texts]
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
        return found

    def _scores(self, pairs: Sequence[Pair]) -> list[float]:
        for pair in pairs:
            self._check_room(len(pair.context), len(pair.continuation))
        with _progress("scoring", self._likelihood.rows(pairs)) as advance:
            return self._likelihood.bounds(pairs, advance)

    def _pair(self, context: str, continuation: str) -> Pair:
        """Return the tokens of both, cut where the context's end; its last spaces go with the continuation."""
        given = context.rstrip(" ")
        before = self._codec.encode(given)
        after = self._codec.encode(context + continuation)[len(before) :]
        if not after:
            raise InputError(f"the continuation {continuation!r} has no token of its own after {context[-40:]!r}")
        return Pair(before or self._before(), after)

    def _before(self) -> list[int]:
        """Return what goes before a text without context: something only where the first token needs a predictor."""
        return [self.model.spec.eos_id] if self.model.spec.logit_shift else []

    def apply_chat_template(self, chat_history: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Return a conversation as text, up to where the answer begins; special tokens are in it, as text.

        Without a generation prompt the last turn must be the assistant's: the answer's beginning, kept as it is.

        Raises:
            InputError: no chat template, a last turn that is not the assistant's, or a text that the tokenizer changes.
        """
        if not self._codec.has_chat:
            raise InputError(f"{self.name} has no chat template; leave out --apply_chat_template")
        turns, begun = list(chat_history), ""
        if not add_generation_prompt:
            if not turns or turns[-1]["role"] != "assistant":
                raise InputError("no generation prompt, and the last turn is not the assistant's to go on with")
            begun = turns.pop()["content"]
        tokens = self._codec.encode_chat(turns)
        text = self._codec.decode(tokens, keep_special=True)
        if self._codec.encode(text) != tokens:
            raise InputError(
                f"the tokenizer does not give back the conversation {text!r:.80}; leave out the chat template"
            )
        return text + begun

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return what a short conversation becomes: lm-eval notes it and its hash beside the results.

        Raises:
            InputError: a template by name; a checkpoint has one.
        """
        if isinstance(chat_template, str):
            raise InputError(f"--apply_chat_template {chat_template}: templates have no names here; give the bare flag")
        roles = ("user", "assistant", "user")
        return self.apply_chat_template([{"role": role, "content": "..."} for role in roles]) if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, by which lm-eval tells its caches of requests apart."""
        return self.name.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval writes beside its results, so that they can be made again."""
        return {
            "esdllm_version": version("esdllm"),
            "torch_version": torch.__version__,
            "model_name": self.name,
            "model_dtype": str(self.model.adapter.dtype).removeprefix("torch."),
            "model_quantize": self.model.quantize,
            "model_compute": self.model.compute,
            "model_device": str(self._device),
            "decode_config": self._decoding.config.to_dict(),
            "decode_configs_used": [config.to_dict() for config in self._used],
            "until": list(self._until),
            "mc_samples": self._likelihood.samples,
            "mc_batch_size": self._likelihood.batch,
        }


_LOADING = ("pretrained", "device", "dtype", "quantize", "compute", "family")
_ARGUMENTS = (*_LOADING, "preset", "config", "batch_size", "mc_samples", "mc_batch_size", "until")


def _codec(model: Model) -> TextCodec:
    if model.codec is None:
        raise InputError(f"lm-eval's tasks are text: {model.codec_error or 'this model has no tokenizer'}")
    return model.codec


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error; give what moves it."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn(what), *columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def register() -> None:
    """Make lm-eval know the model `esdllm` in this process; a second call changes nothing."""
    import lm_eval.models  # noqa: F401  # lm-eval registers its own models only where it finds none

    if "esdllm" not in MODEL_REGISTRY:
        register_model("esdllm")(HarnessModel)


def run(words: Sequence[str]) -> None:
    """Run lm-eval's own command with `words` as its arguments; it reads them from `sys.argv` alone."""
    from lm_eval.__main__ import cli_evaluate

    register()
    before, sys.argv = sys.argv, ["lm-eval", *words]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
