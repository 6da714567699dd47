"""One object to use a model with: answers, conversations, streams, blanks.

pipe = Pipeline.from_pretrained("tiny-llada", preset="es-dllm", gen_length=64)
print(pipe("Who are you?"))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, overload

import attrs
import torch

from esdllm.checkpoints.loading import Model, load_model
from esdllm.checkpoints.placing import DeviceMap
from esdllm.config import DEFAULT_PRESET, DecodeConfig, merge
from esdllm.errors import InputError, brief
from esdllm.keywords import hinting
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.components import Components
from esdllm.runtime.engine import Engine
from esdllm.runtime.prompts import Prepared, Prompts, prepare, seed_list
from esdllm.use.answers import Answer, Answers
from esdllm.use.batching.grouping import alike
from esdllm.use.canvas import CanvasTasks
from esdllm.use.incoming import one, prompt_list, shown
from esdllm.use.streaming import Stream, feed
from esdllm.views import Message

__all__ = ["Pipeline"]


@hinting
@attrs.frozen(eq=False)
class Pipeline(CanvasTasks):
    """A model and its settings, ready to use. Make one with `from_pretrained`; make others of its model with `configured`.

    One answer, batch or stream at a time, for the cache is that of the run that is going on: other threads queue.
    """

    engine: Engine = attrs.field()
    catalogue: Catalogue = attrs.field(factory=Catalogue.load, repr=False)
    """where settings are looked up"""

    @engine.validator
    def _check_engine(self, attribute: Any, value: object) -> None:
        if not isinstance(value, Engine):
            raise InputError(
                f"a Pipeline is made of an Engine, not {brief(value)}; Pipeline.from_pretrained(name) loads a checkpoint, "
                "Pipeline.of(model) takes one that is loaded"
            )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        preset: str | None = None,
        sets: Iterable[str] = (),
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        quantize: str | None = None,
        compute: str | None = None,
        device_map: DeviceMap | None = None,
        family: str | None = None,
        catalogue: Catalogue | None = None,
        **settings: Any,
    ) -> Pipeline:
        """Return a pipeline over a checkpoint: a folder, a hub id, or the name of one that ships with a plugin.

        `settings` are those of `DecodeConfig`, such as gen_length=64 or importance={"alpha": 0.7}; `sets` are the same as on
        the command line, "importance.alpha=0.7". What is said of the model is as for `load_model`.

        Raises:
            CheckpointError: no such checkpoint, or one that cannot be loaded.
            ConfigError: an unknown preset or setting, or a value out of range.
            UnavailableError: the device, dtype, quantisation or a backend is not available.
        """
        catalogue = catalogue or Catalogue.load()
        config = _configure(catalogue, preset, settings, sets)  # a wrong setting is found before weights are read
        held: Any = {"quantize": quantize, "compute": compute, "device_map": device_map, "family": family}
        model = load_model(name_or_path, device, dtype, catalogue, **held)
        return cls(Engine.build(model, config, catalogue), catalogue)

    @classmethod
    @hinting
    def of(cls, model: Model, config: DecodeConfig | None = None, catalogue: Catalogue | None = None) -> Pipeline:
        """Return a pipeline over a model that is loaded; of the default preset if nothing is said."""
        catalogue = catalogue or Catalogue.load()
        return cls(Engine.build(model, config or _configure(catalogue, None, {}, ()), catalogue), catalogue)

    def configured(self, preset: str | None = None, *, sets: Iterable[str] = (), **settings: Any) -> Pipeline:
        """Return a pipeline of the same model, over its own settings, or over a preset's if one is named.

        Raises:
            ConfigError: an unknown preset or setting, or a value out of range.
        """
        held = self.config.to_dict() if preset is None else {}
        config = _configure(self.catalogue, preset, merge(held, settings), sets)
        return Pipeline(Engine.build(self.model, config, self.catalogue), self.catalogue)

    @property
    def model(self) -> Model:
        """The model."""
        return self.engine.model

    @property
    def config(self) -> DecodeConfig:
        """The settings."""
        return self.engine.config

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a text is a sequence of texts, but taken as one
        self, prompts: str, *, chat: bool | None = None, seed: int | None = None, streamer: Any = None
    ) -> Answer: ...

    @overload
    def __call__(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]] | Sequence[Sequence[Message]],
        *,
        chat: bool | None = None,
        seed: int | Sequence[int] | None = None,
        batch: int = 8,
    ) -> Answers: ...

    @hinting
    def __call__(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]] | Sequence[Sequence[Message]],
        *,
        chat: bool | None = None,
        seed: int | Sequence[int] | None = None,
        batch: int = 8,
        streamer: Any = None,
    ) -> Answer | Answers:
        """Return the answer to a prompt, or to each of a list: texts, lists of token ids, or conversations.

        Arrays, tensors, generators and a tokenizer's encoding stand for the lists that they hold; a flat list of token ids or
        turns is one prompt, with one answer.

        A list is decoded `batch` at a time, prompts of like length together. `chat` says whether text goes through the chat
        template: if not told, where the checkpoint brings one. `seed` is every prompt's, or one per prompt. `streamer`, for
        one prompt, is shown the answer as transformers' generate does; see `esdllm.use.streaming.feed`.

        Raises:
            InputError: a prompt that cannot be decoded; says why.
        """
        listed, alone = prompt_list(prompts)
        if alone:
            if streamer is not None:
                return self._streamed(listed[0], chat, seed, streamer)
            return self._batch(listed, chat, seed).answers[0]
        if streamer is not None:
            raise InputError("a streamer is shown one answer; give one prompt, as text")
        return self._batches(listed, chat, seed, batch)

    @hinting
    def chat(self, messages: Sequence[Message], *, seed: int | None = None) -> Answer:
        """Return the assistant's answer to a conversation; `answer.message` is its turn, to go on with.

        Raises:
            InputError: there is no chat template, or the conversation cannot be decoded.
        """
        self.check_chat()
        return self._batch([one(messages)], True, seed).answers[0]

    @hinting
    def stream(
        self, prompt: str | Sequence[int] | Sequence[Message], *, chat: bool | None = None, seed: int | None = None
    ) -> Stream:
        """Return the answer to a prompt or conversation as a stream of events; see `esdllm.use.streaming.Stream`.

        Raises:
            InputError: the prompt cannot be decoded, or there are several.
        """
        rows, alone = prompt_list(prompt)
        if not alone:
            raise InputError(
                f"a stream is of one prompt: text, a conversation or a list of token ids, not {brief(prompt)}"
            )
        self._prepared(rows, chat)
        return Stream(self.engine, rows, shown(rows[0]), chat=chat, seed=seed)

    def _batches(
        self, prompts: Sequence[Any], chat: bool | None, seed: int | Sequence[int] | None, batch: int
    ) -> Answers:
        """Return the answers to prompts of any lengths, those of like length together."""
        if not hasattr(batch, "__index__") or batch < 1:
            raise InputError(f"batch = {brief(batch)}; give at least 1, a whole number")
        if not prompts:
            raise InputError("there is no prompt; give at least one")
        seeds = seed_list(seed, len(prompts))
        if len(seeds) != len(prompts):
            raise InputError(f"there are {len(seeds)} seeds for {len(prompts)} prompts; give one, or one per prompt")
        found: dict[int, Answer] = {}
        lengths = self._prepared(prompts, chat).attention_mask.sum(1).tolist()
        made = []
        for rows in alike(lengths, batch):
            told = None if seed is None else [seeds[i] for i in rows]
            made.append(self._batch([prompts[i] for i in rows], chat, told))
            found.update(zip(rows, made[-1].answers, strict=True))
        answers = tuple(found[i] for i in range(len(prompts)))
        return Answers(answers, sum(one.forwards for one in made), sum(one.seconds for one in made))

    def _batch(self, prompts: Sequence[Any], chat: bool | None, seed: Any) -> Answers:
        result = self.engine.generate(prompts, chat=chat, seed=seed)
        texts = result.text or [""] * len(result.answers)
        rows = zip(prompts, texts, result.answers, strict=True)
        answers = tuple(
            Answer(shown(prompt), text, tuple(tokens), result.forwards, result.seconds) for prompt, text, tokens in rows
        )
        return Answers(answers, result.forwards, result.seconds)

    def _streamed(self, prompt: Any, chat: bool | None, seed: Any, streamer: Any) -> Answer:
        prepared = self._prepared([prompt], chat)
        ids = prepared.tokens[0, : prepared.starts[0]].tolist()
        return feed(self.stream(prompt, chat=chat, seed=seed), streamer, ids)

    def _prepared(self, prompts: Sequence[Any], chat: bool | None) -> Prepared:
        return prepare(self.model, cast(Prompts, prompts), None, self.config.gen_length, False, chat)

    def check_chat(self) -> None:
        """Return if conversations can be had.

        Raises:
            InputError: the checkpoint has no chat template.
        """
        if self.model.codec is not None and not self.model.codec.has_chat:
            raise InputError("this checkpoint has no chat template; pass its prompt as text instead")

    def __repr__(self) -> str:
        spec, config = self.model.spec, self.config
        return f"Pipeline({spec.family}, gen_length={config.gen_length}, block_length={config.block_length})"


def _configure(
    catalogue: Catalogue, preset: str | None, settings: Mapping[str, Any], sets: Iterable[str]
) -> DecodeConfig:
    """Return a configuration of which all components can be built."""
    config = catalogue.configure(preset, None, settings, sets, default=DEFAULT_PRESET)
    Components.resolve(config, catalogue)
    return config
