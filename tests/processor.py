"""What tests need of the processor that they run on."""

from __future__ import annotations

import pytest
import torch

from esdllm_models.arithmetic import packs
from esdllm_models.quantized import quantizer

CPU = torch.device("cpu")
INT8_REFUSED = quantizer("int8").problems(CPU, torch.float32)
"""why 8-bit products cannot be computed here; empty if they can"""

needs_int8 = pytest.mark.skipif(bool(INT8_REFUSED), reason=", ".join(INT8_REFUSED))
needs_bfloat16 = pytest.mark.skipif(
    not packs(CPU, torch.bfloat16), reason="this processor or this torch has no bfloat16 products by oneDNN"
)
