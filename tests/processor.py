"""What tests need of the processor that they run on."""

from __future__ import annotations

import pytest
import torch

from esdllm_models.linear.fbgemm import has_fbgemm
from esdllm_models.linear.packed import packs

CPU = torch.device("cpu")
needs_fbgemm = pytest.mark.skipif(not has_fbgemm(), reason="this torch comes without FBGEMM")
needs_bfloat16 = pytest.mark.skipif(
    not packs(CPU, torch.bfloat16), reason="this processor or this torch has no bfloat16 products by oneDNN"
)
