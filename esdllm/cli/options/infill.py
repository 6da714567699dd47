"""What `esdllm infill` is asked."""

from __future__ import annotations

from typing import Annotated

import attrs
import typer

from esdllm.cli.options import (
    BlockLength,
    Compute,
    ConfigFile,
    Debug,
    Device,
    Dtype,
    FamilyName,
    Json,
    ModelName,
    PresetName,
    ProfileName,
    Quantize,
    Seed,
    Sets,
    Temperature,
    TopK,
    TopP,
)


@attrs.frozen(kw_only=True)
class InfillOptions:
    """Fill in the blanks of a text.

    The text goes to standard output, all else to standard error.

    \b
    esdllm infill "The smallest number is [MASK:2]."
    esdllm infill "The [MASK:4] sat on the [MASK:2-6]." --model GSAI-ML/LLaDA-8B-Base
    """

    template: Annotated[
        str,
        typer.Argument(
            metavar="TEXT",
            help="A text with blanks: [MASK:4] where 4 tokens are missing, [MASK] where one is, [MASK:2-6] where it is "
            "not known how many; - reads standard input.",
        ),
    ]
    model: ModelName = None
    family: FamilyName = None
    preset: PresetName = None
    profile: ProfileName = None
    config: ConfigFile = None
    sets: Sets = None
    block_length: BlockLength = None
    temperature: Temperature = None
    top_p: TopP = None
    top_k: TopK = None
    seed: Seed = None
    device: Device = None
    dtype: Dtype = None
    quantize: Quantize = None
    compute: Compute = None
    as_json: Json = False
    debug: Debug = False
