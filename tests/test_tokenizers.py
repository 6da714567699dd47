"""Text to tokens and back, from a checkpoint's files and never from its code."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CASES, read_config, write_checkpoint
from safetensors.torch import load_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import Qwen2Tokenizer

from esdllm import (
    Catalogue,
    CheckpointError,
    ComponentConfig,
    Engine,
    InputError,
    Message,
    Model,
    TokenizerError,
    load_model,
)
from esdllm.checkpoints.text import CHATML, Codec
from esdllm.foreign import translated
from esdllm_models.tokenizers import LLADA_TEMPLATE, fast_tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and it's the dog's fault that they'll have 1234 fleas.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(12, 345))  # twelve",
    "Größe, naïve café, Ελληνικά, русский, 日本語, 한국어, العربية, emoji 🙂🙃",
]
SPECIAL = {"<|endoftext|>": True, "<|im_start|>": True, "<|im_end|>": True, "<tool_call>": False, "<|mask|>": True}
TEXTS = [
    "",
    " ",
    "\n",
    "\n\n  \n",
    "Hello, world!",
    "  two spaces, and trailing  ",
    "it's they'll WE'RE I'M",
    "0 12 345 6789 3.14159 1,000,000",
    "line one\nline two\r\nline three\n\n\nline six\t\ttabs",
    "def f(x):\n\treturn x ** 2  # ¬ok\n",
    "Größe naïve Ω≈ç√ русский 日本語テキスト 한국어 العربية עברית",
    "e\u0301 and \u00e9 are one letter after NFC; \ufb01 stays",
    "🙂 👩‍👩‍👧‍👦 🇩🇪 \U0001f9ff",
    "zero\u200bwidth \u00a0 nbsp \u3000 wide",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "a<|endoftext|>b<|mask|><|mask|> c",
    "<tool_call> {} </tool_call><tool_call>",
    "<|im_start|",
    "!!!???...---===>>>",
    "x" * 300,
]


@pytest.fixture(scope="module")
def qwen2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Dream checkpoint's tokenizer files: vocab.json, merges.txt, and added tokens in tokenizer_config.json."""
    folder = tmp_path_factory.mktemp("qwen2")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False))
    tokenizer.model.save(str(folder))
    write_config(folder, tokenizer.get_vocab_size())
    return folder


def write_config(folder: Path, first: int, **more: Any) -> None:
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    added = {
        str(first + i): {"content": content, "special": special, **flags}
        for i, (content, special) in enumerate(SPECIAL.items())
    }
    config = {
        "added_tokens_decoder": added,
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "bos_token": None,
        "additional_special_tokens": [content for content, special in SPECIAL.items() if special],
        "errors": "replace",
        **more,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.fixture(scope="module")
def theirs(qwen2_folder: Path) -> Any:
    return Qwen2Tokenizer.from_pretrained(qwen2_folder)


@pytest.fixture(scope="module")
def ours(qwen2_folder: Path, catalogue: Catalogue, dream: Model) -> Any:
    return catalogue.build("model", ComponentConfig("Dream")).codec(qwen2_folder, dream.spec)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text)[:30])
def test_qwen2s_files_give_transformers_tokens(ours: Any, theirs: Any, text: str) -> None:
    expected = theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode(text) == expected
    for keep in (True, False):
        decoded = theirs.decode(expected, skip_special_tokens=not keep, clean_up_tokenization_spaces=False)
        assert ours.decode(expected, keep_special=keep) == decoded


def test_added_tokens_stand_at_their_own_ids(ours: Any, theirs: Any, qwen2_folder: Path) -> None:
    first = len(json.loads((qwen2_folder / "vocab.json").read_text(encoding="utf-8")))
    for number, content in enumerate(SPECIAL):
        assert ours.encode(content) == [first + number] == [theirs.convert_tokens_to_ids(content)]
    assert ours.decode([first + 4, *ours.encode("ok"), first + 3]) == "ok<tool_call>"
    assert ours.decode([first + 4], keep_special=True) == "<|mask|>"


def test_bytes_that_are_no_text_yet_decode_to_replacement_characters(ours: Any, theirs: Any) -> None:
    half = ours.encode("🙂")[:1]
    assert ours.decode(half) == theirs.decode(half) == "\ufffd"


CHAT: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Sort 3 1 2.\nPlease"},
    {"role": "assistant", "content": "1 2 3"},
    {"role": "user", "content": "And 5 4?"},
]


def test_dreams_own_template_is_chatml(ours: Any, qwen2_folder: Path) -> None:
    assert ours.has_chat
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nSort 3 1 2.\nPlease<|im_end|>\n"
        "<|im_start|>assistant\n1 2 3<|im_end|>\n"
        "<|im_start|>user\nAnd 5 4?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert ours.encode_chat(CHAT) == ours.encode(expected)
    assert ours.decode(ours.encode_chat(CHAT), keep_special=True) == expected
    assert ours.stop_ids == (253, *ours.encode("<|im_end|><|endoftext|>"))


LLADA_CHAT = (
    "<|startoftext|>"
    "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nSort 3 1 2.\nPlease<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n1 2 3<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nAnd 5 4?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


@pytest.fixture(scope="module")
def tiny(catalogue: Catalogue) -> Model:
    return load_model("tiny-llada", "cpu", "float32", catalogue)


@pytest.fixture
def tiny_files(catalogue: Catalogue, tmp_path: Path) -> Path:
    """A copy of the shipped checkpoint's tokenizer files."""
    source = catalogue.build("model", ComponentConfig("llada")).checkpoints["tiny-llada"]
    for path in source.glob("*.json"):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_lladas_tokenizer_json_is_read_and_its_template_is_the_published_one(tiny: Model) -> None:
    assert tiny.codec.has_chat
    ids = tiny.codec.encode_chat(CHAT)
    assert tiny.codec.decode(ids, keep_special=True) == LLADA_CHAT
    assert tiny.stop_ids == (tiny.spec.eos_id, *tiny.codec.encode("<|eot_id|>"))
    assert tiny.codec.encode("<|mdm_mask|>") == [tiny.spec.mask_id]


def test_without_a_template_in_the_folder_the_familys_own_gives_the_same(tiny: Model, tiny_files: Path) -> None:
    (tiny_files / "tokenizer_config.json").unlink()
    own = Codec(fast_tokenizer(tiny_files), tiny.spec, "<|eot_id|>", LLADA_TEMPLATE)
    assert own.encode_chat(CHAT) == tiny.codec.encode_chat(CHAT)


def test_a_folders_own_template_goes_before_the_familys(tiny: Model, tiny_files: Path) -> None:
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    (tiny_files / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}), encoding="utf-8")
    first = Codec(fast_tokenizer(tiny_files), tiny.spec, "<|eot_id|>", LLADA_TEMPLATE)
    assert first.decode(first.encode_chat(CHAT[2:3])) == "[1 2 3]"
    (tiny_files / "chat_template.jinja").write_text("<{{ messages[0].role }}>", encoding="utf-8")
    second = Codec(fast_tokenizer(tiny_files), tiny.spec, "<|eot_id|>", LLADA_TEMPLATE)
    assert second.decode(second.encode_chat(CHAT)) == "<system>"


def test_text_goes_in_and_comes_out(tiny: Model, catalogue: Catalogue) -> None:
    config = catalogue.configure("dual-cache", settings={"gen_length": 8, "block_length": 8})
    engine = Engine.build(tiny, config, catalogue)
    plain, chat = engine.generate("Sort 3 1 2.", chat=False), engine.generate(["Sort 3 1 2."], chat=True)
    assert plain.tokens[0, :-8].tolist() == tiny.codec.encode("Sort 3 1 2.")
    assert chat.tokens[0, :-8].tolist() == tiny.codec.encode_chat([{"role": "user", "content": "Sort 3 1 2."}])
    assert engine.generate([[{"role": "user", "content": "Sort 3 1 2."}]]).tokens.equal(chat.tokens)
    assert engine.generate("Sort 3 1 2.").tokens.equal(chat.tokens)  # as a pipeline does, where there is a template
    assert chat.text == [tiny.codec.decode(chat.answers[0])]


def test_a_checkpoint_without_a_tokenizer_loads_and_says_so_when_text_comes(llada: Model, catalogue: Catalogue) -> None:
    assert llada.codec is None
    engine = Engine.build(llada, catalogue.configure("vanilla", settings={"gen_length": 2}), catalogue)
    with pytest.raises(InputError, match=r"text needs a tokenizer: .*llada-0 has no tokenizer: neither tokenizer.json"):
        engine.generate("hello")
    assert engine.generate([[1]]).text is None


def test_wrong_ids_of_added_tokens_are_named(qwen2_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(qwen2_folder, tmp_path / "it"))
    first = len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    write_config(folder, first + 7)
    message = rf"gives '<\|endoftext\|>' the id {first + 7}, but after vocab.json it would be {first}"
    with pytest.raises(CheckpointError, match=message):
        fast_tokenizer(folder)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("merges.txt", None, "the tokenizer files in .* cannot be read"),
        ("vocab.json", "{", "the tokenizer files in .* cannot be read"),
        ("tokenizer.json", "{}", "the tokenizer files in .* cannot be read"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json is not JSON"),
        ("tokenizer_config.json", "[]", r"tokenizer_config\.json holds a list, where an object is needed"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "the tokenizer files in .* cannot be read"),
        ("vocab.json", None, "has no tokenizer: neither tokenizer.json nor vocab.json and merges.txt; copy them there"),
    ],
)
def test_a_broken_tokenizer_is_named(
    qwen2_folder: Path, tmp_path: Path, file: str, text: str | None, message: str
) -> None:
    folder = Path(shutil.copytree(qwen2_folder, tmp_path / "it"))
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        fast_tokenizer(folder)


def test_a_broken_tokenizer_does_not_keep_the_weights_from_loading(catalogue: Catalogue, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, read_config("llada-0"), load_file(CASES / "llada-0" / "model.safetensors"))
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    model = load_model(folder, "cpu", catalogue=catalogue)
    assert model.codec is None
    assert "cannot be read" in model.codec_error
    assert torch.equal(model.adapter.embed(torch.tensor([[3]])), model.adapter.embedding[3][None, None])


def test_code_that_a_tokenizer_names_is_never_imported(qwen2_folder: Path, tmp_path: Path, dream: Model) -> None:
    folder = Path(shutil.copytree(qwen2_folder, tmp_path / "it"))
    (folder / "tokenization_dream.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    first = len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    code = {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}
    write_config(folder, first, tokenizer_class="DreamTokenizer", auto_map=code)
    codec = Codec(fast_tokenizer(folder), dream.spec, "<|im_end|>", "")
    assert codec.decode(codec.encode("safe")) == "safe"
    assert not any("tokenization_dream" in name for name in sys.modules)
    assert not any(folder.rglob("*.pyc"))


# ------------------------------------------------------------------------------ special tokens, and what is broken


def given_as_added_tokens(folder: Path, tmp_path: Path, **config: Any) -> Path:
    """A copy of a Dream tokenizer whose added tokens stand in added_tokens.json alone."""
    copy = Path(shutil.copytree(folder, tmp_path / "it"))
    told = json.loads((copy / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = {one["content"]: int(number) for number, one in told.pop("added_tokens_decoder").items()}
    (copy / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    (copy / "tokenizer_config.json").write_text(json.dumps({**told, **config}), encoding="utf-8")
    return copy


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text)[:30])
def test_added_tokens_json_gives_transformers_tokens(
    qwen2_folder: Path, tmp_path: Path, dream: Model, text: str
) -> None:
    folder = given_as_added_tokens(qwen2_folder, tmp_path)
    theirs, ours = (
        Qwen2Tokenizer.from_pretrained(folder),
        Codec(fast_tokenizer(folder), dream.spec, "<|im_end|>", CHATML),
    )
    expected = theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode(text) == expected
    for keep in (True, False):
        assert ours.decode(expected, keep_special=keep) == theirs.decode(expected, skip_special_tokens=not keep)


def test_special_tokens_of_added_tokens_json_end_answers_and_stand_in_templates(
    qwen2_folder: Path, tmp_path: Path, dream: Model
) -> None:
    template = "{{ eos_token + messages[0].content + pad_token }}"
    folder = given_as_added_tokens(qwen2_folder, tmp_path, chat_template=template)
    codec = Codec(fast_tokenizer(folder), dream.spec, "<|im_end|>", CHATML)
    expected = codec.encode("<|endoftext|>Be brief.<|endoftext|>")
    assert codec.encode_chat(CHAT[:1]) == expected
    assert len(expected) > 3
    assert codec.stop_ids == (dream.spec.eos_id, *codec.encode("<|im_end|><|endoftext|>"))


def test_special_tokens_without_an_id_leave_no_codec_and_a_reason(qwen2_folder: Path, tmp_path: Path) -> None:
    folder = given_as_added_tokens(qwen2_folder, tmp_path)
    (folder / "added_tokens.json").unlink()
    with pytest.raises(
        TokenizerError, match=r"has no id of the special token '<\|endoftext\|>': copy .* added_tokens.json"
    ):
        fast_tokenizer(folder)


def test_wrong_ids_of_added_tokens_json_are_named(qwen2_folder: Path, tmp_path: Path) -> None:
    folder = given_as_added_tokens(qwen2_folder, tmp_path)
    (folder / "added_tokens.json").write_text('{"<|endoftext|>": 999}', encoding="utf-8")
    with pytest.raises(
        TokenizerError, match=r"added_tokens.json gives '<\|endoftext\|>' the id 999, but after vocab.json"
    ):
        fast_tokenizer(folder)


def test_a_mask_token_that_the_vocabulary_lacks_leaves_no_codec_and_a_reason(tiny_files: Path) -> None:
    told = json.loads((tiny_files / "tokenizer_config.json").read_text(encoding="utf-8"))
    (tiny_files / "tokenizer_config.json").write_text(json.dumps({**told, "mask_token": "<M>"}), encoding="utf-8")
    with pytest.raises(
        TokenizerError, match=r"the mask token '<M>' that the configs in .* name is not in the vocabulary"
    ):
        fast_tokenizer(tiny_files)


def test_another_mask_token_than_the_models_is_refused(tiny_files: Path, tiny: Model) -> None:
    told = json.loads((tiny_files / "tokenizer_config.json").read_text(encoding="utf-8"))
    (tiny_files / "tokenizer_config.json").write_text(
        json.dumps({**told, "mask_token": "<|eot_id|>"}), encoding="utf-8"
    )
    with pytest.raises(
        CheckpointError, match=rf"'<\|eot_id\|>' has the id 785, but the model's is {tiny.spec.mask_id}"
    ):
        Codec(fast_tokenizer(tiny_files), tiny.spec, "<|eot_id|>", LLADA_TEMPLATE)


BROKEN: dict[str, Any] = {
    "added_tokens_decoder": [5],
    "bos_token": 5,
    "eos_token": ["a"],
    "pad_token": {"text": "a"},
    "additional_special_tokens": 7,
}


@pytest.mark.parametrize("key", BROKEN)
def test_special_tokens_of_odd_types_leave_no_codec_and_a_reason(qwen2_folder: Path, tmp_path: Path, key: str) -> None:
    folder = Path(shutil.copytree(qwen2_folder, tmp_path / "it"))
    told = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**told, key: BROKEN[key]}), encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"the tokenizer files in .* cannot be read: "):
        fast_tokenizer(folder)


def panicking(name: str) -> Callable[[dict[str, Any]], None]:
    """A change of tokenizer.json at which the tokenizers library panics in Rust."""

    def change(told: dict[str, Any]) -> None:
        if name == "as it is read":
            told["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": ""}
        elif name == "as it encodes":
            told["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAAAAA="}
        else:
            pattern = {"Regex": "(a+)+$"}
            split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
            told["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split]}

    return change


@pytest.mark.parametrize("name", ["as it is read", "as it encodes", "as it searches"])
def test_a_panic_of_the_tokenizers_library_is_an_error_like_others(tiny_files: Path, tiny: Model, name: str) -> None:
    path = tiny_files / "tokenizer.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    panicking(name)(told)
    path.write_text(json.dumps(told), encoding="utf-8")
    kind = TokenizerError if name == "as it is read" else InputError
    with pytest.raises(kind, match=r"(cannot be read|cannot read this text): PanicException: ") as raised:
        Codec(fast_tokenizer(tiny_files), tiny.spec, "<|eot_id|>", LLADA_TEMPLATE).encode("a" * 40 + "!")
    assert "\n" not in str(raised.value)


def test_the_door_lets_through_what_is_not_the_parsers() -> None:
    class PanicError(BaseException):
        """As Rust's panics reach Python."""

    class UnwritableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    for error, said in (
        (ValueError("a\nb" * 500), r"^it cannot be read: ValueError: a ba b.{100,300}…$"),
        (PanicError("lost"), "^it cannot be read: PanicError: lost$"),
        (UnwritableError(), "^it cannot be read: UnwritableError$"),
        (RecursionError(), "^it cannot be read: RecursionError$"),
        (MemoryError(), "^it cannot be read: MemoryError$"),
    ):
        with pytest.raises(InputError, match=said), translated(InputError, "it cannot be read"):
            raise error
    for passed in (KeyboardInterrupt(), SystemExit(3), CheckpointError("ours")):
        with pytest.raises(type(passed)) as raised, translated(InputError, "it cannot be read"):
            raise passed
        assert raised.value is passed


def test_what_the_tokenizer_cannot_write_is_an_error(tiny: Model) -> None:
    assert tiny.codec
    with pytest.raises(CheckpointError, match="tokenizer cannot write what was decoded: OverflowError"):
        tiny.codec.decode([2**64])
