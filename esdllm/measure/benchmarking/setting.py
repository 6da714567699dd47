"""What a benchmark is of: the model, the prompts, the contenders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch

from esdllm.checkpoints.loading import Model, Weights, describe_weights, load_model, random_model, resolve_device
from esdllm.config import DecodeConfig
from esdllm.config.project import Project
from esdllm.errors import ConfigError, InputError
from esdllm.measure.evaluation.contenders import Contender
from esdllm.plugins.catalogue import Catalogue

__all__ = ["BARE", "DEFAULTS", "BenchContender", "Setting", "contenders_named"]

BARE = "bare"
"""Name of the contender that has no framework."""
DEFAULTS = ("vanilla", "dual-cache", "es-dllm")
"""Contenders where none is named."""
_BARE_PRESET = "es-dllm"
_WHOLE = {"early_stop": False}  # so that all contenders decode as many positions


@attrs.frozen
class Setting:
    """All that contenders have in common. Reports are comparable where it is equal."""

    model: str
    """checkpoint or geometry, as it was named"""
    geometry: Mapping[str, Any] | None = None
    """the config.json of a model with random weights; None for a checkpoint"""
    prompt_length: int = 512
    batch: int = 1
    device: str | None = None
    """None for the GPU, if there is one"""
    dtype: str | None = None
    """None for the model's own"""
    quantize: str | None = None
    threads: int = attrs.field(factory=torch.get_num_threads)
    """that torch uses"""
    sample: int | None = None
    """the most steps of each plan that a run makes, the others taken to last as long; None for all"""
    family: str | None = None
    """of which family the model is, as `load_model` takes it; None where its config.json tells"""
    compute: str | None = None
    """the kernel of linear layers, as `load_model` takes it"""

    def load(self, catalogue: Catalogue) -> Model:
        """Return the model."""
        held: Any = {"quantize": self.quantize, "compute": self.compute, "family": self.family}
        if self.geometry is None:
            return load_model(self.model, self.device, self.dtype, catalogue, **held)
        return random_model(self.geometry, self.device, self.dtype, catalogue, **held)

    def weights(self, catalogue: Catalogue) -> Weights:
        """Return what the model's weights would be, without reading them."""
        model = self.model if self.geometry is None else self.geometry
        device = resolve_device(self.device)
        held: Any = {"compute": self.compute, "family": self.family}
        return describe_weights(model, self.dtype, self.quantize, catalogue, device, **held)

    def prompts(self, model: Model) -> torch.Tensor:
        """Return random prompts (B, P) int64, without the mask token; always the same."""
        if self.prompt_length < 1 or self.batch < 1:
            raise InputError(f"{self.batch} prompts of {self.prompt_length} tokens; give at least 1 of each")
        spec = model.spec
        drawn = torch.randint(
            0, spec.vocab - 1, (self.batch, self.prompt_length), generator=torch.Generator().manual_seed(0)
        )
        return drawn + (drawn >= spec.mask_id)

    def on_device(self) -> Setting:
        """Return the same with the device's name, which was perhaps left open."""
        return attrs.evolve(self, device=str(resolve_device(self.device)))


@attrs.frozen
class BenchContender:
    """A contender, and whether it is the bare loop."""

    name: str
    config: DecodeConfig
    bare: bool = False


def contenders_named(
    words: Sequence[str],
    catalogue: Catalogue,
    sets: Sequence[str] = (),
    project: Project | None = None,
) -> list[BenchContender]:
    """Return the contenders that words name: a preset or TOML file, and the `key=value`s after it.

    `bare` is the bare loop, with the plan of `es-dllm` and the `key=value`s after it. Decoding does not stop early unless it
    is set. The rest is as for `Contender.of`.

    Raises:
        ConfigError: a setting before any contender, or one that is wrong; a setting with which the bare loop differs.
    """
    found = []
    for text in _joined(words) or DEFAULTS:
        first, _, rest = text.partition(" ")
        bare = first == BARE
        of = Contender.of(f"{_BARE_PRESET} {rest}" if bare else text, catalogue, _WHOLE, sets, project)
        contender = BenchContender(text if bare else of.name, of.config, bare)
        if bare:
            _check_bare(contender, catalogue)
        found.append(contender)
    names = [contender.name for contender in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(
            f"two contenders are named '{min(twice)}'; leave one out, or set something in which they differ"
        )
    return found


def _joined(words: Sequence[str]) -> list[str]:
    """Return one text a contender: words with `=` belong to the one before."""
    texts: list[str] = []
    for word in words:
        if "=" not in word.split(" ")[0]:
            texts.append(word.strip())
        elif texts:
            texts[-1] += f" {word}"
        else:
            raise ConfigError(f"'{word}' before any contender; name a preset first, such as es-dllm {word}")
    return texts


def _check_bare(contender: BenchContender, catalogue: Catalogue) -> None:
    """Refuse what the bare loop does not compute."""
    plain, config = catalogue.configure(_BARE_PRESET, settings=_WHOLE), contender.config
    fixed = ("blocks", "importance", "sampler", "unmasking", "cache", "attention", "cfg_scale", "compile", "early_stop")
    if other := [name for name in fixed if getattr(config, name) != getattr(plain, name)]:
        raise ConfigError(
            f"the bare loop computes {_BARE_PRESET}'s own {', '.join(other)} only; set refresh, skip and the lengths, "
            "or take the contender es-dllm"
        )
