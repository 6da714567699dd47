"""What `esdllm serve` is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import attrs
import typer

from esdllm.cli.options import (
    AdmissionName,
    BlockLength,
    Compute,
    ConfigFile,
    Debug,
    Device,
    Dtype,
    FamilyName,
    GenLength,
    ModelName,
    Patience,
    PolicyName,
    PresetName,
    ProfileName,
    Quantize,
    Sets,
    Temperature,
    TopK,
    TopP,
)
from esdllm.config.project import KEY_VARIABLE


@attrs.frozen(kw_only=True)
class ServeOptions:
    """Serve a model to many at once, by OpenAI's API.

    Requests are decoded side by side, each token for token as it would be alone. Only this machine is served unless --host
    says more. One line of JSON a request goes to standard output, all else to standard error. At Ctrl-C or SIGTERM what was
    asked is still answered, and nothing new is taken; at the second it stops.

    \b
    esdllm serve
    esdllm serve --model GSAI-ML/LLaDA-8B-Instruct --preset es-dllm-parallel --slots 16 --length 2048
    curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
      -d '{"model": "tiny-llada", "messages": [{"role": "user", "content": "What is 12 + 7?"}]}'
    """

    model: ModelName = None
    family: FamilyName = None
    served_name: Annotated[
        str | None,
        typer.Option("--served-model-name", metavar="NAME", help="What requests call the model [as --model does]."),
    ] = None
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 is every address of this machine.")
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port to listen at; 0 is any free one.")] = (
        8000
    )
    slots: Annotated[
        str, typer.Option(metavar="N", help="Requests that are decoded side by side; auto is what memory has room for.")
    ] = "auto"
    length: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Tokens of a slot: a prompt and its answer [the model's context]."),
    ] = None
    max_queue: Annotated[
        int, typer.Option(metavar="N", min=0, help="Requests that may wait for a slot; others are told to come again.")
    ] = 64
    policy: PolicyName = "refreshes-together"
    patience: Patience = None
    admission: AdmissionName = "in-order"
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Time from a request to its answer; then it ends with what is there."),
    ] = None
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            help=f"Keys, one per line, of which a request must bring one; {KEY_VARIABLE} is one more.",
        ),
    ] = None
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Also answer to this name, as behind a proxy, without a key; repeatable."),
    ] = None
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A web page's origin that may ask, such as https://example.org; repeatable."),
    ] = None
    allow_coupled: Annotated[
        bool,
        typer.Option(
            "--allow-coupled", help="Serve with components that let an answer depend on the requests beside it."
        ),
    ] = False
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD", help="Leave a field of requests aside that would be refused, such as tools; repeatable."
        ),
    ] = None
    log_text: Annotated[bool, typer.Option("--log-text", help="Log prompts and answers too.")] = False
    preset: PresetName = None
    profile: ProfileName = None
    config: ConfigFile = None
    sets: Sets = None
    gen_length: GenLength = None
    block_length: BlockLength = None
    temperature: Temperature = None
    top_p: TopP = None
    top_k: TopK = None
    device: Device = None
    dtype: Dtype = None
    quantize: Quantize = None
    compute: Compute = None
    debug: Debug = False
