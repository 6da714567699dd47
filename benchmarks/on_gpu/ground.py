"""What the stages stand on: where to compute, how large, and where to write what is found."""

from __future__ import annotations

import json
import statistics
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from esdllm import Catalogue
from esdllm.checkpoints.loading import Model, describe_weights, random_model
from esdllm.measure.benchmarking.clock import ClockedEngine, seconds_of
from esdllm.measure.benchmarking.geometries import geometry
from esdllm.plan import StepPlan
from esdllm.runtime.graphs import StepGraphs


@attrs.frozen
class Ground:
    """Of one stage."""

    stage: str
    file: Path
    toy: bool
    """on the CPU, at toy size"""

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        return torch.device("cpu" if self.toy else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        """Of the model."""
        return torch.float32 if self.toy else torch.bfloat16

    @property
    def setting(self) -> dict[str, int]:
        """Lengths: GSM8K's of the paper."""
        if self.toy:
            return {"prompt": 24, "gen_length": 16, "block_length": 8}
        return {"prompt": 900, "gen_length": 256, "block_length": 64}

    def tell(self, of: str, what: str, value: float | str | int) -> None:
        """Write what was found."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self.stage, "of": of, "what": what, "value": value}) + "\n")
        print(f"{of}: {what} {value}", flush=True)

    def attempt(self, of: str, what: str, work: Callable[[], float | str | int]) -> None:
        """Write what `work` finds, or how it failed; the stage goes on."""
        try:
            value = work()
        except Exception as error:
            traceback.print_exc(file=sys.stdout)
            value = f"FAILED: {type(error).__name__}: {str(error).splitlines()[0][:160]}"
        self.tell(of, what, value)

    def model(self, catalogue: Catalogue, quantize: str | None = None) -> Model:
        """Return a model of LLaDA-8B's geometry with random weights."""
        return random_model(self._geometry(catalogue), self.device, self.dtype, catalogue, quantize=quantize)

    def weight_bytes(self, catalogue: Catalogue) -> int:
        """Return what that model's weights take, unquantised."""
        return describe_weights(self._geometry(catalogue), self.dtype, catalogue=catalogue).bytes

    def _geometry(self, catalogue: Catalogue) -> Mapping[str, Any]:
        return geometry("tiny,layers=8,hidden=64,vocab=512" if self.toy else "llada-8b", catalogue)

    def prompts(self, batch: int, length: int | None = None, vocab: int = 500) -> torch.Tensor:
        """Return random prompts (batch, length)."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(5, vocab, (batch, length or self.setting["prompt"]), generator=generator)

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def milliseconds(self, work: Callable[[], object], times: int = 10) -> float:
        """Return the median of what `work` takes on the device."""
        taken = [seconds_of(work, self.device) for _ in range(2 if self.toy else times)]
        return 1e3 * statistics.median(taken)

    def build(
        self, model: Model, catalogue: Catalogue, preset: str, *sets: str, sample: int | None = None
    ) -> ClockedEngine:
        """Return an engine with a clock."""
        setting = self.setting
        lengths = [f"{name}={setting[name]}" for name in ("gen_length", "block_length")]
        config = catalogue.configure(preset, sets=[*lengths, "early_stop=false", *sets])
        engine: Any = ClockedEngine.build(model, config, catalogue)
        engine.sample = sample
        return engine


def replays(engine: Any) -> dict[StepPlan, Callable[[], None]]:
    """Return what replays each plan that an engine has recorded."""
    graphs: StepGraphs | None = engine.step_function.graphs
    known = graphs._known if graphs else {}
    return {key[0]: held.replay for key, held in known.items() if held.replay is not None}
