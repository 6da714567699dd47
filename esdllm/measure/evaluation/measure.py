"""Measuring: every batch is decoded by every contender in turn, so that what slows the machine slows all alike."""

from __future__ import annotations

import platform
import random
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version

import attrs
import torch

from esdllm.checkpoints.loading import Model
from esdllm.errors import InputError, UnavailableError
from esdllm.interfaces import Suite
from esdllm.measure.evaluation.contenders import Contender, check_names
from esdllm.measure.evaluation.outcomes import BatchCost, Evaluation, Outcome
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.engine import Engine
from esdllm.runtime.prompts import prepare
from esdllm.runtime.records import Generation
from esdllm.views import Problem

__all__ = ["EvaluationInterrupted", "evaluate"]


class EvaluationInterrupted(KeyboardInterrupt):
    """Ctrl-C, after at least one batch was measured by all contenders."""

    def __init__(self, evaluation: Evaluation) -> None:
        super().__init__("the evaluation was interrupted")
        self.evaluation = evaluation
        """over the problems that all contenders had answered"""


@attrs.frozen
class _Decoded:
    """One batch decoded by one contender."""

    right: list[bool]
    answers: list[str]
    tokens: list[list[int]]
    cost: BatchCost


def evaluate(
    model: Model,
    suite: Suite,
    problems: Sequence[Problem],
    contenders: Sequence[Contender],
    *,
    names: tuple[str, str, str] = ("", "", ""),
    batch_size: int = 50,
    chat: bool | None = None,
    warm_up: bool = True,
    catalogue: Catalogue | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Evaluation:
    """Return what each contender answers to the problems, what is right of it, and what it took.

    Prompts of similar length share a batch, whatever their task and order. The longest come first, so that a batch that
    does not fit is found at once; the other batches follow in a random order that is always the same. Contenders take
    turns in going first. `names` are the model's, the suite's and the split's, for the evaluation. `chat` renders prompts
    through the chat template; None does if there is one. `warm_up` decodes each contender's first batch once unmeasured;
    a batch during which something was compiled or recorded is decoded again, and that is measured. `progress` is called with a
    contender's name and the answers just made.

    Raises:
        InputError: no problem or no contender, two of one name, a model without a tokenizer, or a prompt that cannot be
            decoded; before anything is decoded.
        ConfigError: a configuration that contradicts itself.
        UnavailableError: a component cannot serve here.
        EvaluationInterrupted: Ctrl-C; holds the evaluation so far. Plain KeyboardInterrupt if there is none.
    """
    _check(model, problems, contenders, batch_size)
    prompts = _prompts(model, problems, max(contender.config.gen_length for contender in contenders), chat)
    engines = [Engine.build(model, contender.config, catalogue) for contender in contenders]
    batches = _batches(prompts, batch_size)
    for engine in engines if warm_up else ():
        _generate(engine, [prompts[i] for i in batches[0]])
    done: list[list[_Decoded]] = []  # batch by batch, in the contenders' order
    gathered = partial(_evaluation, model, problems, contenders, names, batch_size)
    try:
        for turn, batch in enumerate(batches):
            asked, given = [problems[i] for i in batch], [prompts[i] for i in batch]
            runs: dict[int, _Decoded] = {}
            for number in ((turn + place) % len(engines) for place in range(len(engines))):
                runs[number] = _judged(suite, asked, _generate(engines[number], given))
                if progress:
                    progress(contenders[number].name, len(batch))
            done.append([runs[number] for number in range(len(engines))])
    except KeyboardInterrupt as stopped:
        raise (EvaluationInterrupted(gathered(batches[: len(done)], done)) if done else stopped) from None
    return gathered(batches, done)


def _check(model: Model, problems: Sequence[Problem], contenders: Sequence[Contender], batch_size: int) -> None:
    if model.codec is None:
        reason = f": {model.codec_error}" if model.codec_error else ""
        raise InputError(f"the model has no tokenizer, and problems are text{reason}")
    if model.adapter.device.type == "meta":
        raise UnavailableError("the device 'meta' computes no values; use cpu or cuda")
    if not problems or not contenders:
        raise InputError(f"{len(problems)} problems and {len(contenders)} contenders; give at least one of each")
    if batch_size < 1:
        raise InputError(f"batch_size = {batch_size}; give at least 1")
    check_names(contenders)


def _prompts(model: Model, problems: Sequence[Problem], gen_length: int, chat: bool | None) -> list[list[int]]:
    """Return the problems' prompts as tokens; each can be decoded, with `gen_length` tokens after it."""
    found = []
    for number, problem in enumerate(problems, 1):
        try:
            prepared = prepare(model, [problem.prompt], None, gen_length, infill=False, chat=chat)
        except InputError as error:
            raise InputError(f"problem {number}, {problem.prompt[:40]!r}: {error}") from error
        found.append(prepared.tokens[0, :-gen_length].tolist())
    return found


def _batches(prompts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Return the prompts' numbers, those of similar length together; what is in a batch does not depend on their order."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), prompts[i]))
    longest, *others = [order[first : first + size] for first in range(0, len(order), size)]
    random.Random(0).shuffle(others)  # so that an evaluation that is interrupted has answers of every length
    return [longest, *others]


def _generate(engine: Engine, prompts: list[list[int]]) -> Generation:
    """Return a generation during which no step was compiled or recorded."""
    function = engine.step_function
    if not function.has_forms:
        engine = attrs.evolve(engine)  # has no cache yet; so contenders do not hold theirs at the same time
    while True:
        before, result = function.made, engine.generate(prompts)
        if function.made == before:
            return result


def _judged(suite: Suite, problems: Sequence[Problem], result: Generation) -> _Decoded:
    texts = result.text or []
    return _Decoded(
        right=[bool(suite.correct(problem, text)) for problem, text in zip(problems, texts, strict=True)],
        answers=texts,
        tokens=result.answers,
        cost=BatchCost(len(problems), result.forwards, result.layer_work, result.committed, result.seconds),
    )


def _evaluation(
    model: Model,
    problems: Sequence[Problem],
    contenders: Sequence[Contender],
    names: tuple[str, str, str],
    batch_size: int,
    batches: Sequence[Sequence[int]],
    done: Sequence[Sequence[_Decoded]],
) -> Evaluation:
    """Return the evaluation over the problems of `batches`, in the problems' order."""
    numbers = [i for batch in batches for i in batch]
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    outcomes = [_outcome(contender, order, [runs[k] for runs in done]) for k, contender in enumerate(contenders)]
    answered = tuple(problems[i] for i in sorted(numbers))
    return Evaluation(*names, batch_size, answered, tuple(outcomes), _environment(model))


def _outcome(contender: Contender, order: Sequence[int], runs: Sequence[_Decoded]) -> Outcome:
    """Return a contender's outcome; `order` sorts what its batches hold into the evaluation's order."""
    right = [one for run in runs for one in run.right]
    answers = [text for run in runs for text in run.answers]
    tokens = [tuple(answer) for run in runs for answer in run.tokens]
    return Outcome(
        name=contender.name,
        config=contender.config,
        right=tuple(right[i] for i in order),
        answers=tuple(answers[i] for i in order),
        tokens=tuple(tokens[i] for i in order),
        batches=tuple(run.cost for run in runs),
    )


def _environment(model: Model) -> dict[str, object]:
    device = model.adapter.device
    return {
        "esdllm": version("esdllm"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "device": str(device),
        "dtype": str(model.adapter.dtype).removeprefix("torch."),
        "quantize": model.quantize,
        "compute": model.compute,
        "threads": torch.get_num_threads(),
    }
