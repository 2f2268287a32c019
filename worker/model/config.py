"""What a checkpoint says about itself: config.json and generation_config.json as typed values. No torch.

Sizes must be in the file: a wrong guess would load and answer nonsense. The other keys fall back to the defaults of
Qwen's own configuration class, and keys that do not change the maths are ignored. A value that asks for maths this
package does not have is refused here, with file and key named.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from worker.model.errors import CheckpointError

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
QUANTIZE_CONFIG = "quantize_config.json"


class _FileValues(BaseModel):
    """Values of a JSON file of the checkpoint; attributes carry our names, aliases the file's."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


_Values = TypeVar("_Values", bound=_FileValues)


class QuantizationConfig(_FileValues):
    """How the linear layers are quantised (AutoGPTQ's quantize_config)."""

    quant_method: Literal["gptq"] = "gptq"
    # Files from before this key existed hold version 1, which stores zero points minus one.
    checkpoint_format: Literal["gptq"] = "gptq"
    bits: Literal[4, 8]
    group_size: PositiveInt
    sym: bool = True
    desc_act: bool = False


class QwenConfig(_FileValues):
    """Shape of the decoder.

    `mlp_size` is the width of one branch of the MLP; the file's intermediate_size counts both.
    `context_length` is the file's seq_length: up to there dynamic NTK and logn scaling change nothing.
    """

    model_type: Literal["qwen"]
    hidden_size: PositiveInt
    num_layers: PositiveInt = Field(alias="num_hidden_layers")
    num_heads: PositiveInt = Field(alias="num_attention_heads")
    head_dim: PositiveInt = Field(128, alias="kv_channels")
    intermediate_size: PositiveInt
    vocab_size: PositiveInt
    context_length: PositiveInt = Field(8192, alias="seq_length")
    norm_eps: PositiveFloat = Field(1e-6, alias="layer_norm_epsilon")
    rope_base: PositiveFloat = Field(10000.0, alias="rotary_emb_base")
    rotary_pct: Annotated[float, Field(ge=1, le=1)] = 1.0
    scale_attn_weights: Literal[True] = True
    tie_word_embeddings: Literal[False] = False
    quantization: QuantizationConfig | None = Field(None, alias="quantization_config")

    @property
    def mlp_size(self) -> int:
        return self.intermediate_size // 2

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.hidden_size != self.num_heads * self.head_dim:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not num_attention_heads {self.num_heads} "
                f"times kv_channels {self.head_dim}"
            )
        if self.head_dim % 2 or self.intermediate_size % 2:
            raise ValueError("kv_channels and intermediate_size must be even")
        return self


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, int) else value


class GenerationDefaults(_FileValues):
    """Sampling that the checkpoint's authors recommend; the defaults are Qwen-1.8B-Chat's own values.

    `max_window_size` bounds system text plus history, in tokens. `eos` may be empty and never includes `<|im_end|>` in
    Qwen's files: answers must also stop on the tokenizer's control ids.
    """

    chat_format: Literal["chatml"] = "chatml"
    do_sample: bool = True
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.8
    top_k: Annotated[int, Field(ge=0)] = 0
    repetition_penalty: PositiveFloat = 1.1
    max_new_tokens: PositiveInt = 512
    max_window_size: PositiveInt = 6144
    eos: Annotated[tuple[int, ...], BeforeValidator(_as_tuple)] = Field((), alias="eos_token_id")


def load_config(path: Path) -> QwenConfig:
    """Read the config of the checkpoint folder `path`. CheckpointError names the file and the key."""
    values = read_json(path / CONFIG)
    # AutoGPTQ's own `save` writes the quantisation beside the config and not into it.
    if values.get("quantization_config") is None and (path / QUANTIZE_CONFIG).exists():
        values["quantization_config"] = read_json(path / QUANTIZE_CONFIG)
    return _validated(QwenConfig, values, path / CONFIG)


def load_generation_defaults(path: Path) -> GenerationDefaults:
    """Read generation_config.json of the checkpoint folder `path`; Qwen's own values where there is none."""
    file = path / GENERATION_CONFIG
    return _validated(GenerationDefaults, read_json(file) if file.exists() else {}, file)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint. CheckpointError when there is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{file}: no such file. Is {file.parent} a complete checkpoint folder?"
        ) from None
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"{file}: cannot be read as JSON: {problem}") from problem
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: holds {type(values).__name__}, not an object")
    return values


def _validated(kind: type[_Values], values: dict[str, Any], file: Path) -> _Values:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = (
            ": ".join([*(str(part) for part in problem["loc"]), problem["msg"]]) for problem in error.errors()
        )
        raise CheckpointError(f"{file}: " + "; ".join(problems)) from None
