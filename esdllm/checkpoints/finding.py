"""From a checkpoint's name to its folder: one that ships with a plugin, a path, or a hub id's download."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from esdllm.checkpoints.lora import base_of, is_adapter
from esdllm.checkpoints.stored import bits
from esdllm.errors import CheckpointError, known

__all__ = ["find", "hub_sizes", "locate"]


def locate(name: str, shipped: Mapping[str, Path], files: tuple[str, ...]) -> tuple[Path, Path | None]:
    """Return the folder of a model, and that of the adapter to it if a name stands for one.

    Raises:
        CheckpointError: there is none of that name; or the adapter's model is not there, or no model.
    """
    folder = find(name, shipped, (*files, "adapter_config.json"))
    if not is_adapter(folder):
        return folder, None
    base = base_of(folder)
    try:
        model = find(base, shipped, files)
    except CheckpointError as error:
        raise CheckpointError(f"the adapter in {folder} was trained on '{base}': {error}") from error
    if is_adapter(model):
        raise CheckpointError(
            f"the adapter in {folder} was trained on '{base}', which is an adapter too; merge that first"
        )
    return model, folder


def find(name: str, shipped: Mapping[str, Path], files: tuple[str, ...]) -> Path:
    """Return the folder of a checkpoint; of one on the hub, the `files` are fetched that are not here yet.

    Raises:
        CheckpointError: there is none of that name, or the hub does not give it.
    """
    if name in shipped:
        return shipped[name]
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or path.is_absolute() or name.count("/") != 1 or name.startswith((".", "~")):
        raise CheckpointError(
            f"no checkpoint '{name}': not a folder, not a hub id like GSAI-ML/LLaDA-8B-Instruct, not shipped; "
            f"{known(name, shipped)}"
        )
    return _download(name, files)


def hub_sizes(name: str) -> dict[str, int]:
    """Return how many bytes of a hub id's weights are in each dtype, by the headers of its files, which alone are fetched.

    Raises:
        CheckpointError: the hub does not give it.
    """
    from huggingface_hub import get_safetensors_metadata

    try:
        counts = get_safetensors_metadata(name).parameter_count
    except Exception as error:
        raise CheckpointError(
            f"the config.json of '{name}' names no dtype, its weights are not here, and the hub gave: {_reason(error)}; "
            "pass dtype"
        ) from error
    return {dtype: count * bits(dtype) // 8 for dtype, count in counts.items()}


def _download(name: str, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, and only hub ids need it

    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:  # the hub raises errors of many libraries
        raise CheckpointError(
            f"'{name}' is no local folder, and the hub gave: {_reason(error)} (look at the spelling, the "
            "network, and HF_HUB_OFFLINE)"
        ) from error


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0].removeprefix("Got: ")
