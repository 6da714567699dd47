"""Loading a model: from a name to a folder, from its config.json to the family that implements it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from esdllm.catalogue import Catalogue
from esdllm.config import ComponentConfig
from esdllm.errors import CheckpointError, UnavailableError, known
from esdllm.interfaces import ModelAdapter, ModelFamily, TextCodec
from esdllm.views import ModelSpec

__all__ = ["Model", "describe_model", "load_model", "resolve_device", "resolve_dtype", "shipped_checkpoints"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FILES = ("*.json", "*.safetensors", "*.jinja", "merges.txt")


@attrs.frozen(eq=False)
class Model:
    """A loaded model and what turns text into its tokens."""

    adapter: ModelAdapter
    codec: TextCodec | None = None
    """None where only token ids go in and out"""
    codec_error: str = ""
    """why there is no codec, if the checkpoint should have had one"""

    @property
    def spec(self) -> ModelSpec:
        """The model's geometry and special ids."""
        return self.adapter.spec

    def chats(self, told: bool | None = None) -> bool:
        """Return whether text goes through the chat template: as told, or where the checkpoint brings one."""
        return (self.codec is not None and self.codec.has_chat) if told is None else told

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return self.codec.stop_ids if self.codec else (self.spec.eos_id,)


def load_model(
    name_or_path: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    catalogue: Catalogue | None = None,
) -> Model:
    """Return a model from a local folder, a hub id, or the name of a checkpoint that ships with a plugin.

    `device` is the GPU if there is one and else the CPU; `dtype` is the checkpoint's own unless given. Weights are read
    straight into place; code in a checkpoint is never run. A hub id is looked up through huggingface_hub, which respects
    HF_HUB_OFFLINE.

    Raises:
        CheckpointError: no such checkpoint, or one that cannot be loaded; names the key, weight or file.
        UnavailableError: the device or dtype is not available.
    """
    catalogue = catalogue or Catalogue.load()
    where = resolve_device(device)
    folder = _folder(str(name_or_path), catalogue, _FILES)
    config = _read_config(folder)
    family = _family(folder, config, catalogue)
    spec = family.spec(config)
    adapter = family.load(folder, config, where, resolve_dtype(dtype or config.get("torch_dtype", config.get("dtype"))))
    try:
        return Model(adapter, family.codec(folder, spec))
    except CheckpointError as error:
        return Model(adapter, codec_error=str(error))


def describe_model(name_or_path: str | Path, catalogue: Catalogue | None = None) -> ModelSpec:
    """Return a checkpoint's geometry from its config.json alone; no weights are read or downloaded."""
    catalogue = catalogue or Catalogue.load()
    folder = _folder(str(name_or_path), catalogue, ("config.json",))
    config = _read_config(folder)
    return _family(folder, config, catalogue).spec(config)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return the device to use.

    Raises:
        UnavailableError: no such device on this machine.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise UnavailableError(
            f"the device '{device}' is not available here ({reason}); use cpu, or one that is"
        ) from error
    return found


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """Return the dtype of a name; float32 for None.

    Raises:
        UnavailableError: not one of float32, bfloat16, float16.
    """
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    found = _DTYPES.get(dtype or "float32")
    if found is None:
        raise UnavailableError(f"the dtype '{dtype}' is not available; {known(str(dtype), _DTYPES)}")
    return found


def _families(catalogue: Catalogue) -> dict[str, ModelFamily]:
    return {name: catalogue.build("model", ComponentConfig(name)) for name in catalogue.names("model")}


def shipped_checkpoints(catalogue: Catalogue) -> dict[str, Path]:
    """Return the folders of the checkpoints that ship with plugins, by the name that `load_model` takes."""
    return {name: path for family in _families(catalogue).values() for name, path in family.checkpoints.items()}


def _folder(name: str, catalogue: Catalogue, files: tuple[str, ...]) -> Path:
    """Return the folder of a shipped checkpoint, a path, or a hub id's download."""
    shipped = shipped_checkpoints(catalogue)
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


def _download(name: str, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, and only hub ids need it

    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:  # the hub raises errors of many libraries
        reason = str(error).strip().split("\n")[0].removeprefix("Got: ")
        raise CheckpointError(
            f"'{name}' is no local folder, and the hub gave: {reason} (look at the spelling, the network, and HF_HUB_OFFLINE)"
        ) from error


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} is no checkpoint: it has no config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}, where an object is needed")
    return config


def _family(folder: Path, config: Mapping[str, Any], catalogue: Catalogue) -> ModelFamily:
    families, name = _families(catalogue), str(config.get("model_type"))
    if name not in families:
        raise CheckpointError(
            f"{folder / 'config.json'}: the model_type '{name}' is not implemented; {known(name, families)}. A plugin adds "
            "one with the hook esdllm_model_adapters"
        )
    return families[name]
