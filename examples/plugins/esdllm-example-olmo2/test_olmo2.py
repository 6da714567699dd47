"""Run with `pytest` where the package and esdllm are installed. The measure of everything is Olmo2 of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from esdllm_example_olmo2 import Olmo2, Olmo2Family
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import Olmo2Config, Olmo2ForCausalLM, PreTrainedTokenizerFast

from esdllm import (
    CheckpointError,
    Engine,
    Model,
    UnavailableError,
    configure,
    describe_model,
    from_module,
    load_model,
)
from esdllm.testing import check_model_family, full_logits, random_model

MASK, PAD, EOS = 93, 94, 95
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "attn_implementation": "eager",
}
PLAIN = {
    "model_type": "a2d-olmo2",
    "rope_theta": 500000,  # a whole number, as in OLMo 2's own config.json
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
PROMPTS = [[5, 8, 13], [21, 34, 55, 89, 3]]
TOKENS = torch.randint(0, 90, (2, 13), generator=torch.Generator().manual_seed(0))


def reference(tied: bool = False, **more: Any) -> Olmo2ForCausalLM:
    """A random Olmo2 in which every weight, the norms too, shows in the logits."""
    torch.manual_seed(0)
    config = Olmo2Config(**SIZES, tie_word_embeddings=tied, mask_token_id=MASK, **more)
    model = Olmo2ForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    model.config.model_type = "a2d-olmo2"
    return model


def bidirectional(model: Olmo2ForCausalLM, tokens: Tensor) -> Tensor:
    """Return logits (B, L, V) with every position attending to every other."""
    nothing_hidden = torch.zeros(tokens.shape[0], 1, tokens.shape[1], tokens.shape[1])
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=nothing_hidden, use_cache=False).logits


def save(model: Olmo2ForCausalLM, folder: Path, shard: str = "1GB", **changes: Any) -> Path:
    """Write a checkpoint as A2D's are written; `changes` go into config.json, None takes a key out."""
    model.save_pretrained(folder, max_shard_size=shard)
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), "model_type": "a2d-olmo2", **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    words = {f"w{number}": number for number in range(90)}
    words |= {"<|user|>": 90, "<|assistant|>": 92, "<|mask|>": MASK, "<|pad|>": PAD, "<|endoftext|>": EOS}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<|user|>", "<|assistant|>", "<|mask|>", "<|pad|>", "<|endoftext|>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, mask_token="<|mask|>", chat_template=template)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest) -> Olmo2ForCausalLM:
    return reference(request.param)


def test_a_loaded_checkpoint_s_logits_are_those_of_transformers(model: Olmo2ForCausalLM, tmp_path: Path) -> None:
    loaded = load_model(save(model, tmp_path), "cpu")
    expected = bidirectional(model, TOKENS)
    assert expected.std() > 0.5
    torch.testing.assert_close(full_logits(loaded.adapter, TOKENS), expected, atol=1e-5, rtol=0)


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    model = reference()
    loaded = load_model(save(model, tmp_path, shard="20kB"), "cpu")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    torch.testing.assert_close(full_logits(loaded.adapter, TOKENS), bidirectional(model, TOKENS), atol=1e-5, rtol=0)


def test_a_module_s_own_weights_are_computed_with(model: Olmo2ForCausalLM) -> None:
    adapter = from_module(model).adapter
    assert isinstance(adapter, Olmo2)
    torch.testing.assert_close(full_logits(adapter, TOKENS), bidirectional(model, TOKENS), atol=1e-5, rtol=0)
    parameters = {weight.data_ptr() for weight in model.parameters()}
    assert {weight.data_ptr() for weight in adapter.weights.values()} == parameters
    with torch.no_grad():
        model.model.layers[1].self_attn.q_norm.weight.mul_(3)
    torch.testing.assert_close(full_logits(adapter, TOKENS), bidirectional(model, TOKENS), atol=1e-5, rtol=0)


def test_the_family_keeps_the_laws_of_its_kind(model: Olmo2ForCausalLM, tmp_path: Path) -> None:
    config = json.loads((save(model, tmp_path) / "config.json").read_text())
    check_model_family(Olmo2Family(), config, folder=tmp_path, reference=lambda tokens: bidirectional(model, tokens))


def test_queries_of_readers_are_those_of_all(model: Olmo2ForCausalLM) -> None:
    adapter = from_module(model).adapter
    hidden, places = adapter.embed(TOKENS), adapter.encode(torch.arange(13).expand(2, 13))
    whole, part = adapter.project(1, hidden, places), adapter.project(1, hidden, places, torch.tensor([11, 2]))
    torch.testing.assert_close(part.queries, whole.queries[:, [11, 2]])
    torch.testing.assert_close((part.keys, part.values), (whole.keys, whole.values))


def decoded(model: Model, preset: str, prompts: list[list[int]], **more: Any) -> list[list[int]]:
    settings = {"gen_length": 8, "block_length": 4, "delay_eos": False, "early_stop": False, **more}
    generation = Engine.build(model, configure(preset, settings=settings)).generate(prompts)
    return [row[-8:] for row in generation.tokens.tolist()]


def straight_loop(model: Olmo2ForCausalLM, prompt: list[int], shift: int) -> list[int]:
    """Decode 8 tokens in blocks of 4, the surest position first, over whole passes of transformers."""
    tokens = torch.tensor([[*prompt, *[MASK] * 8]])
    for start in (len(prompt), len(prompt) + 4):
        for _ in range(4):
            probabilities = bidirectional(model, tokens)[0].softmax(-1)
            masked = [i for i in range(start, start + 4) if tokens[0, i] == MASK]
            best = max(masked, key=lambda i: float(probabilities[i - shift].max()))
            tokens[0, best] = probabilities[best - shift].argmax()
    return tokens[0, -8:].tolist()


@pytest.mark.parametrize("shift", [0, 1])
def test_vanilla_decodes_what_a_straight_loop_decodes(shift: int, tmp_path: Path) -> None:
    model = reference()
    loaded = load_model(save(model, tmp_path), "cpu", family=f"a2d-olmo2,logit_shift={shift}")
    assert loaded.spec.logit_shift == shift
    expected = [straight_loop(model, prompt, shift) for prompt in PROMPTS]
    assert [decoded(loaded, "vanilla", [prompt])[0] for prompt in PROMPTS] == expected
    assert decoded(loaded, "vanilla", PROMPTS) == expected  # the shorter one is padded


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("preset", ["dual-cache", "es-dllm"])
def test_a_padded_row_is_decoded_as_alone(preset: str, shift: int) -> None:
    loaded = from_module(reference(), family=f"a2d-olmo2,logit_shift={shift}")
    rows = decoded(loaded, preset, PROMPTS)
    assert rows == [decoded(loaded, preset, [prompt])[0] for prompt in PROMPTS]
    assert all(0 <= token < 96 and token != MASK for row in rows for token in row)


@pytest.mark.parametrize("preset", ["dual-cache", "es-dllm"])
def test_refreshing_everything_at_every_step_is_vanilla(preset: str) -> None:
    loaded = from_module(reference())
    assert decoded(loaded, preset, PROMPTS, refresh="every-step") == decoded(loaded, "vanilla", PROMPTS)


def test_no_step_reads_the_device() -> None:
    made = random_model({**SIZES, "mask_token_id": MASK, **PLAIN}, device="meta")
    settings = {"gen_length": 8, "block_length": 8, "early_stop": False}
    assert Engine.build(made, configure("es-dllm", settings=settings)).generate([[1, 2, 3]]).tokens.is_meta


def test_random_weights_follow_the_seed() -> None:
    first, again, other = (
        full_logits(random_model({**SIZES, "mask_token_id": MASK, **PLAIN}, device="cpu", seed=seed).adapter, TOKENS)
        for seed in (1, 1, 2)
    )
    assert first.equal(again)
    assert not first.equal(other)


def test_the_mask_s_id_is_the_tokenizer_s_where_the_config_does_not_say(tmp_path: Path) -> None:
    folder = save(reference(), tmp_path, mask_token_id=None)
    tokenizer().save_pretrained(folder)
    assert describe_model(folder).mask_id == MASK
    loaded = load_model(folder, "cpu")
    assert (loaded.spec.mask_id, loaded.codec_error) == (MASK, "")
    model = reference()
    del model.config.mask_token_id
    assert from_module(model, tokenizer()).spec.mask_id == MASK


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_type = 'yarn' is not implemented"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling = .*linear.* is not implemented; only None is"),
        ({"attention_bias": True}, "attention_bias = True is not implemented"),
        ({"mask_token_id": None}, "mask_token_id = None, where an int is needed; write the token's id there"),
        ({"mask_token_id": 96}, "mask_token_id = 96 is outside the vocabulary of 96"),
        ({"eos_token_id": 200, "pad_token_id": None}, "eos_token_id = 200 is outside the vocabulary of 96"),
        ({"num_key_value_heads": 3}, "32 features, 4 heads and 3 key-value heads do not divide evenly"),
    ],
)
def test_a_config_that_is_not_implemented_is_refused_by_name(changes: Any, message: str, tmp_path: Path) -> None:
    save(reference(), tmp_path, **changes)
    with pytest.raises(CheckpointError, match=f"config.json.*{message}"):
        describe_model(tmp_path)


def test_weights_that_are_not_the_config_s_are_refused_by_name(tmp_path: Path) -> None:
    save(reference(), tmp_path, num_hidden_layers=2)
    with pytest.raises(CheckpointError, match=r"unexpected: model.layers.2.mlp.down_proj.weight"):
        load_model(tmp_path)
    save(reference(tied=True), tmp_path, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"missing: lm_head.weight"):
        load_model(tmp_path)
    save(reference(), tmp_path, num_key_value_heads=4)
    with pytest.raises(
        CheckpointError, match=r"k_proj.weight' has the shape \(16, 32\), but config.json says \(32, 32\)"
    ):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"model.safetensors is truncated or no safetensors file"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no weights: neither model.safetensors nor"):
        load_model(tmp_path)


def test_what_the_plan_asks_for_in_vain_is_refused(tmp_path: Path) -> None:
    folder = save(reference(), tmp_path)
    with pytest.raises(UnavailableError, match="quantisation 'int8' is not available for a2d-olmo2; none is"):
        load_model(folder, quantize="int8")
    with pytest.raises(UnavailableError, match=r"weights are torch.float32 on meta; one dtype on one device"):
        from_module(reference().to("meta"))


def test_a_conversation_ends_where_the_answer_begins(tmp_path: Path) -> None:
    tokenizer().save_pretrained(save(reference(), tmp_path))
    codec = load_model(tmp_path, "cpu").codec
    assert codec is not None
    assert codec.has_chat
    assert codec.stop_ids == (PAD, EOS)
    ids = codec.encode_chat([{"role": "user", "content": "w7 w8"}])
    expected = ["<|endoftext|>", "<|user|>", "w7", "w8", "<|assistant|>"]
    assert codec.decode(ids, keep_special=True).split() == expected
    assert codec.decode(ids) == "w7 w8"


def test_the_checkpoint_s_template_goes_first(tmp_path: Path) -> None:
    tokenizer("{{ messages[0].content }} w1").save_pretrained(save(reference(), tmp_path))
    codec = load_model(tmp_path, "cpu").codec
    assert codec is not None
    assert codec.encode_chat([{"role": "user", "content": "w7"}]) == [7, 1]


def test_a_tokenizer_with_another_mask_is_refused(tmp_path: Path) -> None:
    tokenizer().save_pretrained(save(reference(), tmp_path, mask_token_id=90))
    with pytest.raises(CheckpointError, match=r"mask token '<\|mask\|>' has the id 93, but the model's is 90; write"):
        load_model(tmp_path, "cpu")
    model = reference()
    model.config.mask_token_id = 90
    with pytest.raises(CheckpointError, match="has the id 93, but the model's is 90"):
        from_module(model, tokenizer())
