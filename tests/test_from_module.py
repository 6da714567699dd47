"""A loaded module's own weights: the same logits as from its checkpoint, no copies, and changes in place are seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import write_checkpoint
from lookalikes import dream_config, llada_config, llada_weights, llama, qwen2
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from esdllm import Catalogue, CheckpointError, Engine, UnavailableError, from_module, load_model
from esdllm.runtime.plain import full_logits

TOKENS = torch.randint(0, 250, (2, 13), generator=torch.Generator().manual_seed(0))


class Remote(nn.Module):
    """LLaDA's modules under the names that its own code gives them; they are never called as a whole."""

    def __init__(self, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)
        for name, weight in weights.items():
            *path, leaf, _ = name.split(".")
            parent: nn.Module = self
            for step in path:
                if step not in dict(parent.named_children()):
                    parent.add_module(step, nn.Module())
                parent = parent.get_submodule(step)
            parent.add_module(leaf, self._leaf(leaf, weight))

    @staticmethod
    def _leaf(name: str, weight: Tensor) -> nn.Module:
        if weight.dim() == 1:
            made: Any = nn.RMSNorm(len(weight))
        elif name == "wte":
            made = nn.Embedding(*weight.shape)
        else:
            made = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        made.weight.data.copy_(weight)
        return made


def remote_llada() -> Any:
    return Remote(llada_weights(llama()), llada_config(4))


def remote_dream() -> Any:
    model = qwen2()
    model.config.model_type = "Dream"
    for key in ("mask_token_id", "eos_token_id", "max_position_embeddings"):
        setattr(model.config, key, dream_config()[key])
    return model


@pytest.fixture(params=[remote_llada, remote_dream], ids=["llada", "dream"])
def module(request: pytest.FixtureRequest) -> Any:
    return request.param()


def checkpoint(module: Any, folder: Path) -> Path:
    """Write a module's weights as its checkpoint has them."""
    config = llada_config(4) if isinstance(module, Remote) else dream_config()
    kept = {name: weight.detach().clone().contiguous() for name, weight in module.state_dict().items()}
    return write_checkpoint(folder, config, kept)


def path_of(module: Any, llada: str, dream: str) -> str:
    return f"model.transformer.{llada}" if isinstance(module, Remote) else f"model.{dream}"


def query(module: Any) -> str:
    """The name of a query matrix."""
    return path_of(module, "blocks.1.q_proj", "layers.1.self_attn.q_proj")


def test_logits_are_those_of_the_checkpoint(module: Any, catalogue: Catalogue, tmp_path: Path) -> None:
    loaded = load_model(checkpoint(module, tmp_path), "cpu", "float32", catalogue)
    taken = from_module(module, catalogue=catalogue)
    assert taken.spec == loaded.spec
    expected = full_logits(loaded.adapter, TOKENS)
    assert expected.std() > 0.5
    torch.testing.assert_close(full_logits(taken.adapter, TOKENS), expected, atol=1e-5, rtol=1e-5)


def test_decoding_gives_the_checkpoint_s_tokens(module: Any, catalogue: Catalogue, tmp_path: Path) -> None:
    config = catalogue.configure("es-dllm", settings={"gen_length": 8, "block_length": 4})
    models = load_model(checkpoint(module, tmp_path), "cpu", "float32", catalogue), from_module(module, None, catalogue)
    one, other = (Engine.build(model, config, catalogue).generate([[1, 2, 3]]).tokens for model in models)
    assert one.equal(other)


def test_no_weight_is_copied(module: Any, catalogue: Catalogue) -> None:
    adapter: Any = from_module(module, catalogue=catalogue).adapter
    used = {adapter.embedding.data_ptr(), adapter.norm.data_ptr(), adapter.head.weight.data_ptr()}
    for layer in adapter.layers:
        used |= {layer.attn_norm.data_ptr(), layer.mlp_norm.data_ptr()}
        dense = [*layer.qkv.parts, layer.out, *layer.mlp.gate_up.parts, layer.mlp.down]
        used |= {x.data_ptr() for one in dense for x in (one.weight, one.bias) if x is not None}
        assert [part.weight.data_ptr() for part in (layer.q, *layer.kv.parts)] == [
            part.weight.data_ptr() for part in layer.qkv.parts
        ]
    assert used == {weight.data_ptr() for weight in module.parameters()}


def test_a_change_in_place_is_seen(module: Any, catalogue: Catalogue, tmp_path: Path) -> None:
    adapter = from_module(module, catalogue=catalogue).adapter
    before = full_logits(adapter, TOKENS)
    with torch.no_grad():
        module.get_submodule(query(module)).weight.mul_(2)
    after = full_logits(adapter, TOKENS)
    assert (after - before).abs().max() > 0.1
    again = load_model(checkpoint(module, tmp_path), "cpu", "float32", catalogue)
    torch.testing.assert_close(after, full_logits(again.adapter, TOKENS), atol=1e-5, rtol=1e-5)


class Lora(nn.Module):
    """A low-rank change beside a linear layer, as PEFT puts it in the layer's place."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


def test_a_module_in_a_linear_layer_s_place_is_called(module: Any, catalogue: Catalogue, tmp_path: Path) -> None:
    plain = full_logits(from_module(module, catalogue=catalogue).adapter, TOKENS)
    parent, _, name = query(module).rpartition(".")
    base = module.get_submodule(query(module))
    lora = Lora(base)
    setattr(module.get_submodule(parent), name, lora)
    found = full_logits(from_module(module, catalogue=catalogue).adapter, TOKENS)
    assert (found - plain).abs().max() > 1e-3
    with torch.no_grad():
        base.weight.add_(lora.up.weight @ lora.down.weight)
    setattr(module.get_submodule(parent), name, base)
    merged = load_model(checkpoint(module, tmp_path), "cpu", "float32", catalogue)
    torch.testing.assert_close(found, full_logits(merged.adapter, TOKENS), atol=1e-4, rtol=1e-4)


def hook(linear: Any, tokens: list[int]) -> None:
    linear.register_forward_pre_hook(lambda module, given: tokens.append(given[0].shape[1]))


def replaced_forward(linear: Any, tokens: list[int]) -> None:
    plain = linear.forward
    linear.forward = lambda x: (tokens.append(x.shape[1]), plain(x))[1]


@pytest.mark.parametrize("watch", [hook, replaced_forward])
def test_a_linear_layer_with_hooks_is_called(module: Any, catalogue: Catalogue, watch: Callable[..., None]) -> None:
    calls: list[int] = []
    watch(module.get_submodule(query(module)), calls)
    full_logits(from_module(module, catalogue=catalogue).adapter, TOKENS)
    assert calls == [13]


def test_a_peft_wrapper_is_taken_off(module: Any, catalogue: Catalogue) -> None:
    wrapper: Any = SimpleNamespace(get_base_model=lambda: module)
    taken, plain = (from_module(one, catalogue=catalogue).adapter for one in (wrapper, module))
    assert full_logits(taken, TOKENS).equal(full_logits(plain, TOKENS))


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate(["a", "b", "<|im_end|>", "<|eot_id|>"])}
    made = Tokenizer(models.WordLevel(words, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_a_tokenizer_of_transformers_comes_along(module: Any, catalogue: Catalogue) -> None:
    model = from_module(module, tokenizer(), catalogue)
    assert model.codec is not None
    assert (model.codec.encode("b a"), model.codec.decode([1, 0])) == ([1, 0], "b a")
    assert model.stop_ids == (253, 3 if isinstance(module, Remote) else 2)
    assert from_module(module, model.codec, catalogue).codec is model.codec
    assert from_module(module, catalogue=catalogue).codec is None


def test_an_answer_ends_at_what_the_modules_generation_config_lists(module: Any, catalogue: Catalogue) -> None:
    module.generation_config = SimpleNamespace(eos_token_id=[9, 253, 7])
    assert from_module(module, catalogue=catalogue).stop_ids == (253, 9, 7)


def test_a_module_of_another_build_is_refused_by_name(module: Any, catalogue: Catalogue) -> None:
    base = module.get_submodule(query(module))
    parent, _, name = query(module).rpartition(".")
    setattr(module.get_submodule(parent), name, nn.Linear(16, 32))
    with pytest.raises(CheckpointError, match=rf"'{query(module)}.weight' has the shape \(32, 16\), but .* \(32, 32\)"):
        from_module(module, catalogue=catalogue)
    setattr(module.get_submodule(parent), name, base.to("meta"))
    with pytest.raises(UnavailableError, match=f"'{query(module)}.weight' holds no values"):
        from_module(module, catalogue=catalogue)
    delattr(module.get_submodule(parent), name)
    with pytest.raises(CheckpointError, match=f"has no module '{query(module)}'; pass the model with its head"):
        from_module(module, catalogue=catalogue)


def test_an_embedding_that_is_no_tensor_of_numbers_is_refused(module: Any, catalogue: Catalogue) -> None:
    path = path_of(module, "wte", "embed_tokens")
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, nn.Identity())
    with pytest.raises(UnavailableError, match=f"'{path}' is a Identity whose weight cannot be taken over as it is"):
        from_module(module, catalogue=catalogue)


def test_a_module_that_says_not_what_it_is_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(CheckpointError, match="the Linear has no config that says what model it is"):
        from_module(nn.Linear(2, 2), catalogue=catalogue)
    with pytest.raises(
        CheckpointError,
        match=r"config.json of the model_type 'qwen2' does not tell .*family='open-dcoder'",
    ):
        from_module(qwen2(), catalogue=catalogue)


def test_rope_that_is_not_implemented_is_refused(catalogue: Catalogue) -> None:
    model = remote_dream()
    model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1.0, "factor": 2.0}
    with pytest.raises(
        CheckpointError, match="rope_type = 'dynamic' is not implemented; only 'default' or 'linear' or"
    ):
        from_module(model, catalogue=catalogue)


# what a module does beside its weights


def container(module: Any, llada: str = "blocks.1", dream: str = "layers.1") -> Any:
    return module.get_submodule(path_of(module, llada, dream))


def norm(module: Any) -> str:
    return path_of(module, "blocks.2.ff_norm", "layers.2.post_attention_layernorm")


def put(module: Any, path: str, make: Callable[[Any], Any]) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, make(module.get_submodule(path)))


class Beside(nn.Module):
    """What stands beside a module, in its place, as PEFT's layers do: `weight` is the base's."""

    def __init__(self, base: nn.Module, more: nn.Module) -> None:
        super().__init__()
        self.base_layer, self.more = base, more

    @property
    def weight(self) -> Tensor:
        found: Tensor = self.base_layer.weight  # type: ignore[assignment]
        return found

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.base_layer(x) + self.more(x)
        return found


class Loud(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Offset(nn.Module):
    def __init__(self, base: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(base.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.weight.shape, 1 + self.weight)


def lora_on_the_embedding(module: Any) -> None:
    path = path_of(module, "wte", "embed_tokens")
    put(module, path, lambda base: Beside(base, nn.Embedding(base.num_embeddings, base.embedding_dim)))


def loud_embedding(module: Any) -> None:
    path = path_of(module, "wte", "embed_tokens")
    put(module, path, lambda base: Loud(base.num_embeddings, base.embedding_dim))


def clipped_embedding(module: Any) -> None:
    path = path_of(module, "wte", "embed_tokens")
    put(module, path, lambda base: nn.Embedding(base.num_embeddings, base.embedding_dim, max_norm=0.1))


def tuned_norm(module: Any) -> None:
    put(module, norm(module), lambda base: Beside(base, nn.RMSNorm(32)))


def biased_norm(module: Any) -> None:
    module.get_submodule(norm(module)).register_parameter("bias", nn.Parameter(torch.ones(32)))


def another_norm(module: Any) -> None:
    put(module, norm(module), Offset)


def layer_norm(module: Any) -> None:
    put(module, norm(module), lambda base: nn.LayerNorm(32, bias=False))


def another_epsilon(module: Any) -> None:
    put(module, norm(module), lambda base: nn.RMSNorm(32, eps=0.1))


def hook_on_a_layer(module: Any) -> None:
    container(module).register_forward_hook(lambda *_: None)


def hook_before_a_layer(module: Any) -> None:
    container(module).register_forward_pre_hook(lambda *_: None)


def hook_on_the_whole(module: Any) -> None:
    module.register_forward_hook(lambda *_: None)


def replaced_forward_of_a_layer(module: Any) -> None:
    container(module).forward = lambda x: x


def adapter_in_a_layer(module: Any) -> None:
    container(module).adapter = nn.Linear(32, 32)


def loose_parameter(module: Any) -> None:
    container(module).scale = nn.Parameter(torch.ones(1))


def a_norm_in_another_dtype(module: Any) -> None:
    module.get_submodule(norm(module)).double()


def a_linear_layer_in_another_dtype(module: Any) -> None:
    module.get_submodule(query(module)).bfloat16()


def a_wrapped_layer_in_another_dtype(module: Any) -> None:
    put(module, query(module), lambda base: Lora(base).bfloat16())


def a_hooked_layer_in_another_dtype(module: Any) -> None:
    module.get_submodule(query(module)).register_forward_hook(lambda *_: None)
    module.get_submodule(query(module)).half()


def eight_bits(module: Any) -> None:
    layer = module.get_submodule(query(module))
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)


def everything_in_eight_bits(module: Any) -> None:
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.float8_e4m3fn)


def dropout(module: Any) -> None:
    put(module, query(module), lambda base: Beside(base, nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.5))))
    module.train()


def another_shape(module: Any) -> None:
    put(module, query(module), lambda base: nn.Sequential(base, nn.Linear(32, 8)))


def other_frequencies(module: Any) -> None:
    container(module).register_buffer("inv_freq", torch.ones(4))


REFUSED: dict[Callable[[Any], None], str] = {
    lora_on_the_embedding: "is a Beside whose weight cannot be taken over as it is: it holds base_layer, more",
    loud_embedding: "is a Loud, which gives something else than its weight's rows",
    clipped_embedding: "is a Embedding, which gives something else",
    tuned_norm: "is a Beside whose weight cannot be taken over as it is: .*merge what was trained",
    biased_norm: "it holds bias too",
    another_norm: "is a Offset, which computes something else than RMSNorm",
    layer_norm: "is a LayerNorm, which computes something else than RMSNorm",
    another_epsilon: r"has the epsilon 0.1, but the config says 1e-0",
    hook_on_a_layer: "has forward hooks or its own forward, which would not run; remove them first",
    hook_before_a_layer: "has forward hooks",
    hook_on_the_whole: r"the module \(.*\) has forward hooks",
    replaced_forward_of_a_layer: "has forward hooks or its own forward",
    adapter_in_a_layer: "adapter.weight' has no place in a model of the family",
    loose_parameter: "scale' has no place in a model of the family",
    a_norm_in_another_dtype: r"is float64, and the embedding is float32; cast the module to one dtype",
    a_linear_layer_in_another_dtype: r"is bfloat16, and the embedding is float32; .*module.to\(torch.float32\)",
    a_wrapped_layer_in_another_dtype: "is a Lora that cannot be called with float32",
    a_hooked_layer_in_another_dtype: "is float16, and the embedding is float32",
    eight_bits: "is float8_e4m3fn, and the embedding is float32",
    everything_in_eight_bits: "the embedding is float8_e4m3fn, in which nothing is computed",
    dropout: "drops out in training mode; call the module's eval",
    another_shape: r"is a Sequential that makes \(1, 1, 8\) float32",
    other_frequencies: "inv_freq' are not RoPE's frequencies for the config's theta",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_what_would_be_left_out_is_refused(module: Any, catalogue: Catalogue, change: Callable[[Any], None]) -> None:
    change(module)
    with pytest.raises((UnavailableError, CheckpointError), match=REFUSED[change]):
        from_module(module, catalogue=catalogue)


class Wrapper(nn.Module):
    """PEFT's, around a module."""

    def __init__(self, base: Any, prompt: int = 0) -> None:
        super().__init__()
        self.base_model = base
        if prompt:
            self.prompt_encoder = nn.Embedding(prompt, 32)

    def get_base_model(self) -> Any:
        return self.base_model


def test_wrappers_are_taken_off_and_what_they_add_is_refused(module: Any, catalogue: Catalogue) -> None:
    expected = full_logits(from_module(module, catalogue=catalogue).adapter, TOKENS)
    for wrapper in (Wrapper(module), nn.DataParallel(module), torch.compile(Wrapper(module)), torch.compile(module)):
        assert full_logits(from_module(wrapper, catalogue=catalogue).adapter, TOKENS).equal(expected)
    with pytest.raises(UnavailableError, match=r"the Wrapper holds 'prompt_encoder.weight' beside the model"):
        from_module(Wrapper(module, prompt=4), catalogue=catalogue)
    soft: Any = Wrapper(module)
    soft.peft_config = {"default": SimpleNamespace(is_prompt_learning=True)}
    with pytest.raises(UnavailableError, match="adapter 'default' is a soft prompt"):
        from_module(soft, catalogue=catalogue)
    hooks: Any = Wrapper(module)
    hooks.register_forward_pre_hook(lambda *_: None)
    with pytest.raises(UnavailableError, match="the Wrapper has forward hooks"):
        from_module(hooks, catalogue=catalogue)


def test_tied_weights_are_the_embedding_s_in_modules_and_folders(
    module: Any, catalogue: Catalogue, tmp_path: Path
) -> None:
    key = "weight_tying" if isinstance(module, Remote) else "tie_word_embeddings"
    head, table = (
        module.get_submodule(path)
        for path in (
            ("model.transformer.ff_out", "model.transformer.wte")
            if isinstance(module, Remote)
            else ("lm_head", "model.embed_tokens")
        )
    )
    head.weight = table.weight
    loaded = load_model(checkpoint(module, tmp_path / "both"), "cpu", "float32", catalogue)
    expected = full_logits(loaded.adapter, TOKENS)
    setattr(module.config, key, True)
    found = [from_module(module, catalogue=catalogue)]
    config = {**(llada_config(4) if isinstance(module, Remote) else dream_config()), key: True}
    held = {name: weight.detach().clone() for name, weight in module.state_dict().items()}
    name = "model.transformer.ff_out.weight" if isinstance(module, Remote) else "lm_head.weight"
    found.append(load_model(write_checkpoint(tmp_path / "one", config, held), "cpu", "float32", catalogue))
    del held[name]
    found.append(load_model(write_checkpoint(tmp_path / "tied", config, held), "cpu", "float32", catalogue))
    if isinstance(module, Remote):  # whose own code has no head then
        delattr(module.model.transformer, "ff_out")
        found.append(from_module(module, catalogue=catalogue))
    for model in found:
        torch.testing.assert_close(full_logits(model.adapter, TOKENS), expected, atol=1e-5, rtol=1e-5)
