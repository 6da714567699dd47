"""Layers over several devices: who lies where, and that what crosses over crosses back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import CASES
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from esdllm import Catalogue, ConfigError, Engine, LoadPlan, ModelSpec, UnavailableError, load_model
from esdllm.checkpoints.placing import Placement, resolve_device
from esdllm.runtime.plain import full_logits
from esdllm_models.spread import Spread

TOKENS = torch.randint(0, 250, (2, 11), generator=torch.Generator().manual_seed(0))
CPU, FIRST, SECOND = torch.device("cpu"), torch.device("cuda:0"), torch.device("cuda:1")


@pytest.fixture
def spec(catalogue: Catalogue) -> ModelSpec:
    """The geometry of a LLaDA of 8 layers."""
    return load_model(CASES / "llada-0", "cpu", catalogue=catalogue).spec


class Pretended(TorchFunctionMode):
    """Devices that are not there: each tensor has a place, `to` alone changes it, and a function of two places fails."""

    def __init__(self) -> None:
        super().__init__()
        self.places = WeakIdKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.to and isinstance(args[1], torch.device):
            moved = args[0].clone()
            self.places[moved] = args[1]
            return moved
        given = {self.places.get(x, CPU) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        assert len(given) <= 1, f"{func} over {given}"
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, torch.Tensor):
                self.places[x] = next(iter(given), CPU)
        return made

    def put(self, place: torch.device, *weights: Any) -> None:
        for weight in weights:
            tensors = [weight] if isinstance(weight, torch.Tensor) else [weight.weight, weight.bias]
            self.places.update({x: place for x in tensors if x is not None})


def plan(spec: ModelSpec, **options: Any) -> LoadPlan:
    return Placement.of(**options).plan(spec, torch.float32)


def test_one_device_holds_all(spec: ModelSpec) -> None:
    found = plan(spec, device="cpu")
    assert (found.devices, found.layers, found.head) == ((CPU,), (CPU,) * 8, CPU)


def test_a_list_spreads_the_layers_evenly_in_order(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esdllm.checkpoints.placing.resolve_device", torch.device)
    found = plan(spec, device_map=["cuda:0", "cuda:1", "cuda:2"])
    assert [device.index for device in found.layers] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert (found.device.index, found.head) == (0, torch.device("cuda:2"))


def test_auto_is_every_gpu_or_else_the_cpu(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert plan(spec, device_map="auto").devices == (FIRST, SECOND)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert plan(spec, device_map="auto").devices == (CPU,)


def test_a_mapping_says_where_each_layer_lies(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esdllm.checkpoints.placing.resolve_device", torch.device)
    halves = {"layers.4-7": "cuda:1", "layers.0-2": "cuda:0", "layers.3": "cpu"}
    found = plan(spec, device_map=halves)
    assert found.layers == (FIRST,) * 3 + (CPU,) + (SECOND,) * 4
    assert (found.device, found.head) == (FIRST, SECOND)
    found = plan(spec, device_map={**halves, "head": "cuda:0", "embedding": "cpu"})
    assert (found.device, found.head) == (CPU, FIRST)


WRONG = [
    ({"layers.0-2": "cpu", "layers.5-7": "cpu"}, "leaves out layer 3, 4; the model has layers 0 to 7"),
    ({"head": "cpu"}, "leaves out layer 0, 1, 2, 3, 4, 5, 6, 7"),
    ({"layers.0-7": "cpu", "layers.3": "cpu"}, "names layer 3 twice, in 'layers.0-7' and 'layers.3'"),
    ({"layers.0-8": "cpu"}, "names 'layers.0-8', but the model has layers 0 to 7"),
    ({"layers.5-3": "cpu"}, "names 'layers.5-3', but the model has layers 0 to 7"),
    ({"blocks.0": "cpu"}, "names 'blocks.0'; it may name embedding, head, layers.3 or layers.0-15"),
    ("balanced", "device_map = 'balanced'; give 'auto', a list of devices, or a mapping"),
    ([], r"device_map = \[\]; give 'auto'"),
    ({}, r"device_map = \{\}; give 'auto'"),
]


@pytest.mark.parametrize(("device_map", "message"), WRONG, ids=str)
def test_a_map_that_does_not_fit_the_model_is_refused(catalogue: Catalogue, device_map: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model(CASES / "llada-0", catalogue=catalogue, device_map=device_map)


@pytest.mark.parametrize("device_map", [["cpu", "cuda:77"], {"layers.0-7": "cuda:77"}])
def test_a_device_of_a_map_that_is_not_there_is_named(catalogue: Catalogue, device_map: Any) -> None:
    with pytest.raises(UnavailableError, match="the device 'cuda:77' is not available here"):
        load_model(CASES / "llada-0", catalogue=catalogue, device_map=device_map)


def test_a_device_and_a_map_contradict_each_other(catalogue: Catalogue) -> None:
    with pytest.raises(ConfigError, match=r"device = 'cpu' and device_map = \['cpu'\]; give one of them"):
        load_model(CASES / "llada-0", "cpu", catalogue=catalogue, device_map=["cpu"])


@pytest.mark.parametrize("name", ["llada-0", "dream-0"])
def test_a_map_of_one_device_changes_nothing(catalogue: Catalogue, name: str) -> None:
    plain = load_model(CASES / name, "cpu", catalogue=catalogue).adapter
    mapped = load_model(CASES / name, catalogue=catalogue, device_map={"layers.0-7": "cpu"}).adapter
    assert type(mapped) is type(plain)
    assert full_logits(mapped, TOKENS).equal(full_logits(plain, TOKENS))


@pytest.mark.parametrize("preset", ["vanilla", "dual-cache", "es-dllm"])
def test_hopping_between_devices_changes_no_token(catalogue: Catalogue, preset: str) -> None:
    """cpu:0 is the CPU under another name, so that every hop is made and nothing else differs."""
    config = catalogue.configure(preset, settings={"gen_length": 8, "block_length": 4})
    plain = load_model(CASES / "llada-0", "cpu", catalogue=catalogue)
    expected = Engine.build(plain, config, catalogue).generate([[1, 2, 3], [4]]).tokens
    spread = load_model(CASES / "llada-0", catalogue=catalogue, device_map=["cpu", resolve_device("cpu:0")])
    assert isinstance(spread.adapter, Spread)
    assert Engine.build(spread, config, catalogue).generate([[1, 2, 3], [4]]).tokens.equal(expected)


@pytest.mark.parametrize("readers", [None, torch.arange(3)], ids=["all", "readers"])
def test_every_tensor_crosses_to_its_layer_and_back(catalogue: Catalogue, readers: Any) -> None:
    whole: Any = load_model(CASES / "dream-0", "cpu", catalogue=catalogue).adapter
    hidden, places = whole.embed(TOKENS), whole.encode(TOKENS)
    some = hidden if readers is None else hidden[:, readers]
    with Pretended() as pretended:
        pretended.put(SECOND, whole.embedding, whole.frequencies, hidden, some, TOKENS, places.cos, places.sin)
        pretended.put(FIRST, whole.norm, whole.head)
        for number, layer in enumerate(whole.layers):
            pretended.put(FIRST if number < 4 else SECOND, *layer[:-3], *layer.mlp)
        if readers is not None:
            pretended.put(SECOND, readers)
        spread = Spread(whole, SECOND, (FIRST,) * 4 + (SECOND,) * 4, FIRST)
        assert spread.devices == {FIRST, SECOND}
        everywhere = spread.encode(TOKENS)
        assert {device: pretended.places[x] for device, (x, *_) in everywhere.items()} == {
            d: d for d in (FIRST, SECOND)
        }
        for number in (0, 7):
            made = spread.project(number, hidden, everywhere, readers)
            found = (*made, spread.mix(number, some, made.queries), spread.logits(hidden))
            assert {pretended.places[x] for x in found} == {SECOND}
        with pytest.raises(AssertionError, match=r"rms_norm .* over"):
            whole.project(0, hidden, places, readers)
    expected = whole.project(7, hidden, places, readers)
    assert all(x.equal(y) for x, y in zip(made, expected, strict=True))


def test_a_family_that_cannot_be_spread_says_so() -> None:
    spread = LoadPlan(torch.float32, CPU, (CPU, FIRST))
    with pytest.raises(UnavailableError, match="Mine cannot be spread over devices: cpu, cuda:0"):
        spread.only("Mine")
    spread.only("Mine", spread=True)
