"""What config files say is read with their names, and refused with file and key named."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.model.tiny import Tiny
from worker.model.config import QwenConfig, load_config, load_generation_defaults
from worker.model.errors import CheckpointError

# The values of Qwen-1.8B-Chat-Int4.
QWEN = {
    "architectures": ["QWenLMHeadModel"],
    "model_type": "qwen",
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "kv_channels": 128,
    "intermediate_size": 11008,
    "vocab_size": 151936,
    "max_position_embeddings": 8192,
    "seq_length": 8192,
    "layer_norm_epsilon": 1e-6,
    "rotary_pct": 1.0,
    "rotary_emb_base": 10000,
    "scale_attn_weights": True,
    "no_bias": True,
    "tie_word_embeddings": False,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "use_flash_attn": "auto",
    "onnx_safe": None,
    "fp16": True,
    "quantization_config": {
        "bits": 4,
        "group_size": 128,
        "damp_percent": 0.01,
        "desc_act": False,
        "static_groups": False,
        "sym": True,
        "true_sequential": True,
        "model_name_or_path": None,
        "model_file_base_name": "model",
        "quant_method": "gptq",
    },
}
GENERATION = {
    "chat_format": "chatml",
    "eos_token_id": 151643,
    "pad_token_id": 151643,
    "max_window_size": 6144,
    "max_new_tokens": 512,
    "do_sample": True,
    "top_k": 0,
    "top_p": 0.8,
    "repetition_penalty": 1.1,
    "transformers_version": "4.31.0",
}


def loaded(folder: Path, values: object) -> QwenConfig:
    (folder / "config.json").write_text(json.dumps(values))
    return load_config(folder)


def test_qwen(tmp_path: Path) -> None:
    config = loaded(tmp_path, QWEN)
    assert (config.hidden_size, config.num_layers, config.num_heads, config.head_dim) == (2048, 24, 16, 128)
    assert (config.mlp_size, config.vocab_size, config.context_length) == (5504, 151936, 8192)
    assert (config.norm_eps, config.rope_base) == (1e-6, 10000)
    quantization = config.quantization
    assert quantization is not None
    assert (quantization.bits, quantization.group_size) == (4, 128)
    assert (quantization.sym, quantization.desc_act) == (True, False)


def test_missing_keys_have_qwens_defaults(tmp_path: Path) -> None:
    sizes = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"}
    little = {key: value for key, value in QWEN.items() if key in sizes | {"model_type"}}
    assert loaded(tmp_path, little) == loaded(tmp_path, {**QWEN, "quantization_config": None})
    for key in sizes | {"model_type"}:
        with pytest.raises(CheckpointError) as caught:
            loaded(tmp_path, {name: value for name, value in little.items() if name != key})
        assert str(caught.value) == f"{tmp_path / 'config.json'}: {key}: Field required"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2"}, "model_type: Input should be 'qwen'"),
        ({"hidden_size": 0}, "hidden_size: Input should be greater than 0"),
        ({"hidden_size": "wide"}, "hidden_size: Input should be a valid integer"),
        ({"kv_channels": 64}, "hidden_size 2048 is not num_attention_heads 16 times kv_channels 64"),
        ({"num_attention_heads": 2048, "kv_channels": 1}, "must be even"),
        ({"intermediate_size": 11007}, "must be even"),
        ({"rotary_pct": 0.5}, "rotary_pct"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"quantization_config": {"bits": 3, "group_size": 128}}, "quantization_config: bits"),
        ({"quantization_config": {"bits": 4, "group_size": -1}}, "quantization_config: group_size"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: group_size: Field required"),
        (
            {"quantization_config": {"bits": 4, "group_size": 128, "quant_method": "awq"}},
            "quantization_config: quant_method",
        ),
        (
            {"quantization_config": {"bits": 4, "group_size": 128, "checkpoint_format": "gptq_v2"}},
            "quantization_config: checkpoint_format",
        ),
    ],
)
def test_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        loaded(tmp_path, QWEN | change)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read as JSON"), ("[]", "holds list, not an object"), (None, "no such file")],
)
def test_no_config_at_all(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_config(tmp_path)


def test_quantisation_beside_the_config(tmp_path: Path) -> None:
    """AutoGPTQ's `save` leaves config.json as it was and writes quantize_config.json."""
    (tmp_path / "quantize_config.json").write_text(json.dumps(QWEN["quantization_config"]))
    plain = {key: value for key, value in QWEN.items() if key != "quantization_config"}
    assert loaded(tmp_path, plain) == loaded(tmp_path, QWEN)


def test_generation_defaults(tmp_path: Path) -> None:
    without_file = load_generation_defaults(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(GENERATION))
    qwen = load_generation_defaults(tmp_path)
    assert qwen.eos == (151643,)
    assert qwen == without_file.model_copy(update={"eos": (151643,)})
    assert (qwen.do_sample, qwen.temperature, qwen.top_p, qwen.top_k) == (True, 1.0, 0.8, 0)
    assert (qwen.repetition_penalty, qwen.max_new_tokens, qwen.max_window_size) == (1.1, 512, 6144)

    Tiny().write(tmp_path)
    assert load_generation_defaults(tmp_path).do_sample is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chat_format": "raw"}, "chat_format: Input should be 'chatml'"),
        ({"top_p": 0}, "top_p: Input should be greater than 0"),
        ({"eos_token_id": "end"}, "eos_token_id"),
    ],
)
def test_refused_generation_defaults(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(GENERATION | change))
    with pytest.raises(CheckpointError) as caught:
        load_generation_defaults(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'generation_config.json'}: {message}")
