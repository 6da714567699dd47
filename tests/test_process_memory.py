"""What loading and attending take of memory, as the operating system counts it: each in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CASES, read_config, write_checkpoint, zeros

from esdllm import Catalogue
from esdllm.checkpoints.loading import describe_weights, geometries
from esdllm_models.families.rnd1 import Rnd1Family
from esdllm_models.linear.kernels import QUANTIZERS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
CANVAS = 8192
"""columns of a long one"""

MEASURE = """
import esdllm, sys

def kilobytes(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

catalogue = esdllm.Catalogue.load()
small, folder, kind = *sys.argv[1:3], sys.argv[3] or None
esdllm.load_model(small, "cpu", "bfloat16", catalogue, quantize=kind)  # imports everything
before = kilobytes("VmRSS")
model = esdllm.load_model(folder, "cpu", catalogue=catalogue, quantize=kind)
print(kilobytes("VmHWM") - before, kilobytes("VmRSS") - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder as LLaDA-8B's, in bfloat16 and four shards, of 412 MB; and its sizes in bytes: all, one layer."""
    sizes = {"d_model": 1024, "n_heads": 8, "n_kv_heads": 8, "n_layers": 14, "mlp_hidden_size": 3072}
    config = {**read_config("llada-0"), **sizes, "vocab_size": 8192, "embedding_size": 8192, "torch_dtype": "bfloat16"}
    layer = dict.fromkeys(("q_proj", "k_proj", "v_proj", "attn_out"), (1024, 1024))
    layer |= {"ff_proj": (3072, 1024), "up_proj": (3072, 1024), "ff_out": (1024, 3072)}
    layer |= {"attn_norm": (1024,), "ff_norm": (1024,)}
    shapes: dict[str, tuple[int, ...]] = {"wte": (8192, 1024), "ff_out": (8192, 1024), "ln_f": (1024,)}
    shapes |= {f"blocks.{number}.{name}": shape for number in range(14) for name, shape in layer.items()}
    weights = {
        f"model.transformer.{name}.weight": torch.ones(shape, dtype=torch.bfloat16) for name, shape in shapes.items()
    }
    folder = write_checkpoint(tmp_path_factory.mktemp("large"), config, weights, shards=4)
    yield folder, sum(x.nbytes for x in weights.values()), sum(2 * a * (b[0] if b else 1) for a, *b in layer.values())
    shutil.rmtree(folder)


def loaded(folder: Path, kind: str | None, **environment: str) -> tuple[int, int]:
    """Load a model in a process of its own; return the bytes that it took at most, and those that it takes afterwards."""
    command = [sys.executable, "-c", MEASURE, str(CASES / "llada-0"), str(folder), kind or ""]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert result.returncode == 0, result.stderr
    peak, after = (1024 * int(number) for number in result.stdout.split())
    return peak, after


GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # so that what was freed is not counted
SLACK = 30e6  # of which 8.4 MB are values read at once
WAYS = [
    *QUANTIZERS,
    pytest.param(None, marks=pytest.mark.processor),
]  # in bfloat16, packed where the processor multiplies it


@pytest.mark.serial
@pytest.mark.parametrize("kind", WAYS)
def test_loading_takes_the_model_s_size_and_one_layer_in_full(
    large: Any, catalogue: Catalogue, kind: str | None
) -> None:
    folder, full, layer = large
    size = describe_weights(folder, None, kind, catalogue).bytes
    assert size < 0.6 * full if kind else full <= size < 1.05 * full  # a kernel may lay weights out in whole blocks
    peak, after = loaded(folder, kind, **GIVES_BACK)
    assert 0.9 * size < after < size + SLACK
    assert peak < size + layer + SLACK < (0.7 if kind else 1.2) * full


@pytest.mark.serial
def test_loading_leaves_no_holes_but_for_one_layer(large: Any) -> None:
    folder, size, layer = large
    peak, after = loaded(folder, None)
    assert 0.9 * size < after <= peak < size + layer + SLACK


@pytest.mark.serial
def test_loading_a_model_that_is_mostly_head_takes_the_head_twice(catalogue: Catalogue, tmp_path: Path) -> None:
    sizes = {"d_model": 448, "n_layers": 2, "mlp_hidden_size": 1536, "vocab_size": 65536, "embedding_size": 65536}
    config = {**read_config("llada-0"), **sizes, "torch_dtype": "bfloat16"}
    weights = {name: weight.bfloat16() for name, weight in zeros(config).items()}
    head, size = 2 * 448 * 65536, sum(weight.nbytes for weight in weights.values())
    folder = write_checkpoint(tmp_path / "it", config, weights)
    peak, after = loaded(folder, None, **GIVES_BACK)
    shutil.rmtree(folder)
    assert after < size + SLACK
    assert peak < 3 * head + SLACK


@pytest.mark.serial
def test_loading_takes_no_more_memory_than_the_checkpoint_has(tmp_path: Path) -> None:
    """373 MB, a third of them one embedding; a second copy of it would show."""
    sizes = {"d_model": 448, "n_layers": 12, "mlp_hidden_size": 1536, "vocab_size": 65536, "embedding_size": 65536}
    config = {**read_config("llada-0"), **sizes}
    folder = write_checkpoint(tmp_path / "big", config, zeros(config))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    peak, after = loaded(folder, None)
    shutil.rmtree(folder)
    assert 0.9 * size < after <= peak <= 1.15 * size


_PEAKS = """
import re, torch
from pathlib import Path
from esdllm import KeyValue
from esdllm_backends.attention.eager import EagerAttention
from esdllm_backends.attention.sdpa import SdpaAttention

def peak():  # in KiB; ru_maxrss would be the parent's where that is larger
    return int(re.search("VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

def attend(backend, window, length, padded):
    bias = torch.zeros(1, length).masked_fill(torch.arange(length) < 100, float("-inf")) if padded else None
    read = KeyValue(torch.randn(1, length, 1, 16), torch.randn(1, length, 1, 16), bias, (100,) if padded else None)
    backend.attend(torch.randn(1, window, 2, 16), read)

torch.set_num_threads(1)
attend(SdpaAttention(), 8, 128, True)
for backend, window, padded in ((SdpaAttention(), 8192, True), (SdpaAttention(), 8192, False), (EagerAttention(), 1024, True)):
    before = peak()
    attend(backend, window, 8192, padded)
    print((peak() - before) / 1024)
"""


def test_a_long_canvas_attends_to_itself_in_little_memory() -> None:
    done = subprocess.run([sys.executable, "-c", _PEAKS], capture_output=True, text=True, check=True)
    padded, even, eager = map(float, done.stdout.split())
    one_mask = 4 * CANVAS * CANVAS / 2**20  # MiB: 256 for a head, were it made
    assert max(padded, even) < one_mask / 8
    assert eager > 4 * 2 * 1024 * CANVAS / 2**20  # what is looked for is seen


@pytest.mark.serial
@pytest.mark.parametrize("kind", ["int8-weight-only", None])
def test_loading_experts_takes_the_model_s_size_and_one_layer_in_full(
    catalogue: Catalogue, tmp_path: Path, kind: str | None
) -> None:
    sizes = {
        "hidden_size": 512,
        "moe_intermediate_size": 512,
        "num_experts": 24,
        "num_experts_per_tok": 2,
        "vocab_size": 512,
    }
    sizes |= {"num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}
    config = {**geometries(catalogue)["rnd1-30b"], **sizes, "mask_token_id": 511, "eos_token_id": 510}
    shapes = Rnd1Family().blueprint(config).shapes()
    weights = {
        name: torch.ones([axis if isinstance(axis, int) else axis.size for axis in shape], dtype=torch.bfloat16)
        for name, shape in shapes.items()
    }
    full = sum(weight.nbytes for weight in weights.values())
    folder = write_checkpoint(tmp_path / "experts", config, weights, shards=3)
    weights.clear()
    size = describe_weights(folder, None, kind, catalogue).bytes
    assert size < 0.6 * full if kind else size == pytest.approx(full, rel=0.01)  # a router is held in float32
    peak, after = loaded(folder, kind, **GIVES_BACK)
    shutil.rmtree(folder)
    assert 0.9 * size < after < size + SLACK
    assert peak < size + full / 6 + SLACK
