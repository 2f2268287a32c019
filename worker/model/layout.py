"""Which tensors a Qwen-1 checkpoint holds: names, types and shapes, from its config alone.

Torch is needed by none of this; types are spelled as in a safetensors header.
"""

from collections.abc import Iterator
from typing import NamedTuple

from worker.model import gptq
from worker.model.config import QuantizationConfig, QwenConfig

FLOATS = ("F16", "BF16", "F32")
INTS = ("I32",)


class Expected(NamedTuple):
    """One tensor of the checkpoint."""

    name: str
    dtypes: tuple[str, ...]
    shape: tuple[int, ...]
    required: bool = True


class Linear(NamedTuple):
    """One linear layer inside `transformer.h.N`."""

    name: str
    in_features: int
    out_features: int
    has_bias: bool


def linears(config: QwenConfig) -> tuple[Linear, ...]:
    """The five linear layers of a block. Only `c_attn` has a bias in the architecture."""
    hidden, mlp = config.hidden_size, config.mlp_size
    return (
        Linear("attn.c_attn", hidden, 3 * hidden, has_bias=True),
        Linear("attn.c_proj", hidden, hidden, has_bias=False),
        Linear("mlp.w1", hidden, mlp, has_bias=False),
        Linear("mlp.w2", hidden, mlp, has_bias=False),
        Linear("mlp.c_proj", mlp, hidden, has_bias=False),
    )


def expected_tensors(config: QwenConfig) -> Iterator[Expected]:
    """Every tensor the config calls for, in the order of the forward pass.

    ValueError when the quantised layers cannot have the packing the config claims.
    """
    hidden, vocab = config.hidden_size, config.vocab_size
    yield Expected("transformer.wte.weight", FLOATS, (vocab, hidden))
    for layer in range(config.num_layers):
        block = f"transformer.h.{layer}"
        yield Expected(f"{block}.ln_1.weight", FLOATS, (hidden,))
        yield Expected(f"{block}.ln_2.weight", FLOATS, (hidden,))
        for linear in linears(config):
            yield from _linear(f"{block}.{linear.name}", linear, config.quantization)
    yield Expected("transformer.ln_f.weight", FLOATS, (hidden,))
    yield Expected("lm_head.weight", FLOATS, (vocab, hidden))


def _linear(name: str, linear: Linear, quantization: QuantizationConfig | None) -> Iterator[Expected]:
    if quantization is None:
        yield Expected(f"{name}.weight", FLOATS, (linear.out_features, linear.in_features))
    else:
        shapes = gptq.packed_shapes(
            linear.in_features,
            linear.out_features,
            bits=quantization.bits,
            group_size=quantization.group_size,
        )
        yield Expected(f"{name}.qweight", INTS, shapes.qweight)
        yield Expected(f"{name}.qzeros", INTS, shapes.qzeros)
        yield Expected(f"{name}.scales", FLOATS, shapes.scales)
        yield Expected(f"{name}.g_idx", INTS, shapes.g_idx)
    # AutoGPTQ wrote a bias of zeros for every layer it quantised, whatever the architecture has; a checkpoint
    # dequantised from such a file may have kept them.
    yield Expected(f"{name}.bias", FLOATS, (linear.out_features,), required=linear.has_bias)
