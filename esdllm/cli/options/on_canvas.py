"""What the commands ask that weigh, keep to a pattern, or edit."""

from __future__ import annotations

from typing import Annotated

import attrs
import typer

from esdllm.cli.options import (
    Compute,
    ConfigFile,
    Debug,
    Device,
    Dtype,
    FamilyName,
    GenLength,
    Json,
    ModelName,
    PresetName,
    ProfileName,
    Quantize,
    Sets,
)

__all__ = ["ChooseOptions", "EditOptions", "MatchOptions", "OnCanvasOptions"]


@attrs.frozen(kw_only=True)
class OnCanvasOptions:
    """What all of them ask."""

    model: ModelName = None
    family: FamilyName = None
    preset: PresetName = None
    profile: ProfileName = None
    config: ConfigFile = None
    sets: Sets = None
    device: Device = None
    dtype: Dtype = None
    quantize: Quantize = None
    compute: Compute = None
    as_json: Json = False
    debug: Debug = False


@attrs.frozen(kw_only=True)
class ChooseOptions(OnCanvasOptions):
    """Weigh options: how probable the model holds each, from one forward.

    An option comes as the answer to the prompt, or in its blank, [MASK].

    \b
    esdllm choose "What is 12 + 7?" "The result is 12 + 7 = 18." "The result is 12 + 7 = 19."
    esdllm choose "The capital of France is[MASK]." " Paris" " Lyon" --samples 32
    """

    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="A prompt, or a text with one blank, [MASK].")]
    options: Annotated[list[str], typer.Argument(metavar="OPTION...", help="2 to 64 texts.")]
    samples: Annotated[
        int | None, typer.Option(help="Mask sets of a lower bound; if not told, one forward and an estimate.")
    ] = None


@attrs.frozen(kw_only=True)
class MatchOptions(OnCanvasOptions):
    """Answer with a text that matches a pattern, or with JSON of a schema.

    Needs pip install "esdllm[pattern]".

    \b
    esdllm match "What is 12 + 7?" --pattern "[0-9]+"
    esdllm match "What is 12 + 7?" --schema '{"type": "object", "properties": {"sum": {"type": "integer"}}}'
    """

    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="A prompt.")]
    pattern: Annotated[str | None, typer.Option(help="A regular expression.")] = None
    schema: Annotated[str | None, typer.Option(help="A JSON schema.")] = None
    gen_length: GenLength = None


@attrs.frozen(kw_only=True)
class EditOptions(OnCanvasOptions):
    """Decode again what the model holds for least likely in a text; all else stays.

    \b
    esdllm edit "The result is 12 + 7 = 18." --instruction "What is 12 + 7?"
    """

    text: Annotated[str, typer.Argument(metavar="TEXT", help="A text.")]
    instruction: Annotated[str | None, typer.Option(help="What the text is the answer to.")] = None
    span: Annotated[str | None, typer.Option(help="The part that may change; all of it if not told.")] = None
    count: Annotated[int | None, typer.Option(help="Tokens to decode again; else those below --below.")] = None
    below: Annotated[float, typer.Option(help="The probability below which a token is decoded again.")] = 0.5
