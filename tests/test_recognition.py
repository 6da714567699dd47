"""Which family a config.json is of: by what it says, or by what the user says where it does not tell."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch
import typer
from click import Context
from helpers import CASES, offers, read_config

from esdllm import (
    BlockCausal,
    Catalogue,
    CheckpointError,
    ConfigError,
    ModelFamily,
    PluginError,
    describe_model,
    from_module,
    load_model,
)
from esdllm.checkpoints.families import families, family_of
from esdllm.checkpoints.loading import describe_weights, random_model
from esdllm.checkpoints.reading import class_names
from esdllm.checkpoints.told import Told
from esdllm.cli import main
from esdllm.cli.app import app
from esdllm_models.blueprint import Blueprint
from esdllm_models.families.llada import LladaFamily

CLASS = "CousinModelLM"


@attrs.frozen
class Cousin(LladaFamily):
    """One that says the same model_type, and names a class of its own."""

    checkpoints: ClassVar[Mapping[str, Path]] = {}
    model_types = ("llada",)

    def claims(self, config: Mapping[str, Any]) -> bool:
        return CLASS in class_names(config)


@attrs.frozen
class Mute(Cousin):
    """One whose configs never tell it."""

    model_types = ("qwen2",)

    def claims(self, config: Mapping[str, Any]) -> bool:
        return False


@attrs.frozen
class Blocks(LladaFamily):
    """One that attends block by block."""

    checkpoints: ClassVar[Mapping[str, Path]] = {}
    written: int | None = attrs.field(default=None, metadata={"help": "block of written keys"})

    def blueprint(self, config: Mapping[str, Any]) -> Blueprint:
        found = LladaFamily.blueprint(self, {key: value for key, value in config.items() if key != "block_size"})
        attention = BlockCausal(config.get("block_size", 4), written=self.written)
        return attrs.evolve(found, spec=attrs.evolve(found.spec, family="blocks", attention=attention))


def catalogue(**families: type[ModelFamily]) -> Catalogue:
    return Catalogue.load({"made-up": offers("esdllm_model_adapters", families)})


def chosen(config: Mapping[str, Any], told: str | None = None, **families: type[ModelFamily]) -> str:
    return type(family_of("here", config, catalogue(**families), Told.of(told))).__name__


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "llada"}, "LladaFamily"),
        ({"model_type": "llada", "architectures": ["LLaDAModelLM"]}, "LladaFamily"),
        ({"model_type": "llada", "architectures": [CLASS]}, "Cousin"),
        ({"model_type": "llada", "architectures": CLASS}, "Cousin"),
        ({"model_type": "llada", "auto_map": {"AutoModel": f"modeling_cousin.{CLASS}"}}, "Cousin"),
        ({"model_type": "llada", "auto_map": {"AutoModel": f"somebody/cousin--modeling_cousin.{CLASS}"}}, "Cousin"),
        ({"model_type": "llada", "auto_map": {"AutoTokenizer": [None, f"x.{CLASS}"]}}, "Cousin"),
        ({"model_type": "cousin-2", "architectures": [CLASS]}, "Cousin"),
        ({"model_type": None, "architectures": [CLASS]}, "Cousin"),
        ({"architectures": [CLASS]}, "Cousin"),
        ({"model_type": "llada", "architectures": None, "auto_map": 5}, "LladaFamily"),
        ({"model_type": "llada", "architectures": [None, 5, {}]}, "LladaFamily"),
        ({"model_type": "Dream", "architectures": ["DreamModel"]}, "DreamFamily"),
        ({"model_type": "blocks"}, "Blocks"),
    ],
)
def test_a_family_that_claims_a_config_goes_before_one_that_has_its_model_type(
    config: Mapping[str, Any], expected: str
) -> None:
    assert chosen(config, cousin=Cousin, mute=Mute, blocks=Blocks) == expected


def test_the_families_of_a_catalogue_are_built_once_and_are_its_own() -> None:
    made = catalogue(cousin=Cousin)
    first = families(made)
    assert all(family is first[name] for name, family in families(made).items())
    assert "cousin" in first
    assert "cousin" not in families(catalogue())


def test_a_config_that_does_not_tell_is_refused_with_the_families_that_could_read_it() -> None:
    message = (
        r"^here: a config.json of the model_type 'qwen2' does not tell that the model decodes by diffusion; if it does, say "
        r"so with family='mute' \(--family mute\), or 'open-dcoder'$"
    )
    with pytest.raises(CheckpointError, match=message):
        chosen({"model_type": "qwen2"}, mute=Mute)
    with pytest.raises(
        CheckpointError, match=r"say so with family='mute' \(--family mute\), or 'open-dcoder' or 'other'$"
    ):
        chosen({"model_type": "qwen2"}, other=Mute, mute=Mute)
    assert chosen({"model_type": "qwen2"}, "mute", mute=Mute) == "Mute"


def test_two_families_that_read_one_config_are_both_named() -> None:
    message = (
        r"'blocks' and 'more' all read .* \(model_type 'blocks'\), which does not tell them apart; say so with family="
    )
    more = type("More", (Blocks,), {"model_types": ("blocks",)})
    with pytest.raises(CheckpointError, match=message):
        chosen({"model_type": "blocks"}, blocks=Blocks, more=attrs.frozen(more))
    with pytest.raises(CheckpointError, match="'cousin' and 'second' all read"):
        chosen({"model_type": "llada", "architectures": [CLASS]}, cousin=Cousin, second=Cousin)
    assert chosen({"model_type": "llada", "architectures": [CLASS]}, "second", cousin=Cousin, second=Cousin) == "Cousin"


def test_a_model_type_that_none_reads_is_refused_with_the_nearest() -> None:
    with pytest.raises(CheckpointError, match=r"the model_type 'lada' is not implemented; did you mean 'llada'\?"):
        chosen({"model_type": "lada"}, mute=Mute)
    with pytest.raises(CheckpointError, match=r"here has no model_type; say so with family='Dream'"):
        chosen({}, mute=Mute)
    with pytest.raises(CheckpointError, match=r"the model_type '\['llada'\]' is not implemented"):
        chosen({"model_type": ["llada"]})


def test_what_the_user_says_goes_before_what_the_config_says() -> None:
    assert chosen({"model_type": "llada"}, "cousin", cousin=Cousin) == "Cousin"
    assert chosen({"model_type": "llada", "architectures": [CLASS]}, "llada", cousin=Cousin) == "LladaFamily"
    assert chosen({"model_type": "a-name-of-my-own"}, "llada") == "LladaFamily"
    assert chosen({}, "llada") == "LladaFamily"
    with pytest.raises(CheckpointError, match=r"^no family 'ladda'; did you mean 'llada'\? known: Dream"):
        chosen({"model_type": "llada"}, "ladda")
    message = (
        r"^here: the family 'Dream' reads the model_type 'Dream', and this one says 'llada', which 'cousin' or 'llada' "
    )
    with pytest.raises(CheckpointError, match=message):
        chosen({"model_type": "llada"}, "Dream", cousin=Cousin)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("", "names no family; begin with one"),
        (",block_size=8", "names no family"),
        ("block_size=8", "names no family"),
        ("blocks,block_size=8,block_size=4", "says block_size twice"),
        ("blocks,block_size=eight", "block_size = 'eight', the positions of a block of attention; give a whole number"),
        ("blocks,block_size=-1", "block_size = -1"),
        ("blocks,block_size=true", "block_size = True"),
        ("blocks,mask_token_id=1.5", "mask_token_id = 1.5, the id of the mask token"),
        ("blocks,block_size", "cannot read the setting 'block_size'"),
        ("blocks,", "cannot read the setting ''"),
        (
            "blocks,blok_size=8",
            "model 'blocks' has no option 'blok_size'; did you mean 'block_size'",
        ),
        (5, "family = 5; give a name"),
    ],
)
def test_what_cannot_be_read_of_what_the_user_says_is_refused(told: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen({**read_config("llada-0"), "model_type": "blocks"}, told, blocks=Blocks)


def test_what_the_user_says_beside_the_name_goes_over_the_config() -> None:
    config = {**read_config("llada-0"), "model_type": "blocks"}
    told = Told.of("blocks, block_size=8 ,mask_token_id=250,eos_token_id=3,written=2")
    spec = family_of("here", told.applied(config), catalogue(blocks=Blocks), told).spec(told.applied(config))
    assert (spec.attention, spec.mask_id, spec.eos_id) == (BlockCausal(8, written=2), 250, 3)


def test_a_model_that_does_not_follow_what_was_told_is_refused() -> None:
    message = (
        "block_size=8 was told, the positions of a block of attention, but the family llada attends to all positions"
    )
    with pytest.raises(CheckpointError, match=message):
        load_model(CASES / "llada-0", "cpu", family="llada,block_size=8")
    fixed = {
        "model_types": ("llada",),
        "spec": lambda self, config: Blocks.spec(self, read_config("llada-0")),
    }
    deaf = attrs.frozen(type("Deaf", (Blocks,), fixed))
    with pytest.raises(CheckpointError, match=r"block_size=8 was told, .* but the family blocks has 4; leave it out"):
        load_model(CASES / "llada-0", "cpu", catalogue=catalogue(deaf=deaf), family="deaf,block_size=8")


def written(folder: Path, config: Mapping[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "model.safetensors").symlink_to(CASES / "llada-0" / "model.safetensors")
    return folder


def test_every_way_to_a_model_takes_the_family(tmp_path: Path) -> None:
    here, config = catalogue(mute=Mute), {**read_config("llada-0"), "model_type": "qwen2"}
    folder = written(tmp_path / "qwen", config)
    expected = load_model(CASES / "llada-0", "cpu")
    for load in (load_model, describe_model, describe_weights):
        with pytest.raises(CheckpointError, match=r"qwen/config.json: .*--family mute"):
            load(folder, catalogue=here)  # type: ignore[operator]
    tokens = torch.arange(6)[None]
    loaded = load_model(folder, "cpu", catalogue=here, family="mute")
    assert torch.equal(loaded.adapter.embed(tokens), expected.adapter.embed(tokens))
    assert describe_model(folder, here, family="mute") == expected.spec
    assert describe_weights(folder, catalogue=here, family="mute,mask_token_id=7").spec.mask_id == 7
    assert random_model(config, "cpu", catalogue=here, family="mute,eos_token_id=9").spec.eos_id == 9
    with pytest.raises(CheckpointError, match=r"the geometry: .*--family mute"):
        random_model(config, "cpu", catalogue=here)


COMMANDS = {
    "generate": ["hello"],
    "chat": [],
    "infill": ["a [MASK:4] b"],
    "choose": ["2 + 2 =", "3", "4"],
    "match": ["hello", "--pattern", "[0-9]+"],
    "edit": ["hello"],
    "explain": [],
    "trace": ["hello", "--html", "trace.html"],
    "doctor": [],
    "eval": ["--count", "1"],
    "analyze": ["hello"],
    "simulate": [],
    "bench run": [],
    "bench curve": ["--over", "batch", "1"],
    "bench serve": [],
    "serve": [],
    "tune": [],
    "config validate": ["decode.toml"],
}
"""Every command that takes a model, and what it cannot do without."""


def test_every_command_that_takes_a_model_takes_its_family() -> None:
    def with_option(group: Any, option: str, path: str = "") -> set[str]:
        found = set()
        for name in group.list_commands(Context(group)):
            one, here = group.get_command(Context(group), name), f"{path} {name}".strip()
            found |= with_option(one, option, here) if hasattr(one, "list_commands") else set()
            found |= {here} if any(option in param.opts for param in one.params) else set()
        return found

    group = typer.main.get_command(app)
    assert (
        with_option(group, "--family") - {"models pull", "models show"} == COMMANDS.keys()
    )  # whose argument is the model
    assert with_option(group, "--model") - COMMANDS.keys() == {"conformance"}  # where it chooses among cases


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_reads_the_model_as_the_family_that_it_was_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "decode.toml").write_text("gen_length = 64", encoding="utf-8")
    written(tmp_path / "made-up", {**read_config("llada-0"), "model_type": "of-my-own"})
    assert main([*name.split(), *COMMANDS[name], "-m", "made-up", "--family", "no-such"]) == 2
    assert "no family 'no-such'; " in " ".join(capsys.readouterr().err.split())


def test_the_environment_says_the_family_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(written(tmp_path / "made-up", {**read_config("llada-0"), "model_type": "of-my-own"}))
    assert main(["explain", "-m", folder, "--gen-length", "32", "--block-length", "8"]) == 2
    assert "the model_type 'of-my-own' is not implemented" in capsys.readouterr().err
    monkeypatch.setenv("ESDLLM_FAMILY", "llada")
    assert main(["explain", "-m", folder, "--gen-length", "32", "--block-length", "8"]) == 0


def test_an_id_that_was_told_goes_before_the_tokenizers_and_the_generation_config(tmp_path: Path) -> None:
    config = {key: value for key, value in read_config("llada-0").items() if key != "mask_token_id"}
    folder = written(tmp_path, config)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 8]}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="mask_token_id = None"):
        describe_model(folder)
    told = describe_model(folder, family="llada,mask_token_id=9,eos_token_id=11")
    assert (told.mask_id, told.eos_id, told.stop_ids) == (9, 11, ())


def test_a_module_is_recognised_by_its_class_where_its_config_names_none() -> None:
    class CousinModelLM(torch.nn.Module):
        config: ClassVar[Any] = {"model_type": "llada"}

    seen = []

    @attrs.frozen
    class Seeing(Cousin):
        def from_module(self, module: Any, config: Mapping[str, Any]) -> Any:
            seen.append(config["architectures"])
            raise CheckpointError("seen")

    with pytest.raises(CheckpointError, match="seen"):
        from_module(CousinModelLM(), catalogue=catalogue(seeing=Seeing))
    assert seen == [[CLASS]]


def test_a_family_that_cannot_tell_is_blamed() -> None:
    def fail(self: Any, config: Mapping[str, Any]) -> bool:
        return config["no such key"]  # type: ignore[no-any-return]

    failing = attrs.frozen(type("Failing", (Cousin,), {"claims": fail}))
    with pytest.raises(
        PluginError, match=r"model 'failing' of plugin 'made-up' .* cannot say whether a config.json is its own"
    ):
        chosen({"model_type": "llada"}, failing=failing)
    one: Collection[str] = "llada"
    text = attrs.frozen(type("Text", (Cousin,), {"model_types": one}))
    with pytest.raises(PluginError, match=r"has model_types = 'llada'; give a tuple: model_types = \('llada',\)"):
        chosen({"model_type": "llada"}, text=text)
