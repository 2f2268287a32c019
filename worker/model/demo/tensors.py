"""The demo's weights: Llama tensors of the GGUF file as Qwen-1 tensors, linear layers in 4-bit GPTQ.

What differs between the two architectures and is undone here:
* llama.cpp stores the rows of q and k pairwise interleaved for its rotary embedding; Qwen rotates halves.
* Three key/value heads serve nine query heads; Qwen has as many of each, so each is repeated three times.
* q, k, v are one matrix `c_attn` with a bias (zeros here), and w2, not w1, is the branch that gets the SiLU.
* The head is tied to the embedding in the source and separate in Qwen.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.model import gptq
from worker.model.demo.vocabulary import Vocabulary
from worker.model.rtn import quantize_rtn_ls

LAYERS = 30
HIDDEN = 576
MLP = 1536
HEADS = 9
KV_HEADS = 3
HEAD_DIM = 64
BITS = 4
GROUP_SIZE = 32  # 128 does not divide 576

Float = NDArray[np.float32]


class GgufFile:
    """The GGUF file, mapped: weights are decoded when asked for."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self._tensors: dict[str, Any] = {tensor.name: tensor for tensor in reader.tensors}
        self.tokens: list[str] = reader.fields["tokenizer.ggml.tokens"].contents()

    def weight(self, name: str) -> Float:
        """A tensor as fp32: a matrix `[out, in]` or a vector."""
        tensor = self._tensors[f"{name}.weight"]
        decoded: Float = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        return decoded


def convert(source: GgufFile, vocabulary: Vocabulary) -> Iterator[dict[str, Tensor]]:
    """The checkpoint's tensors by name, in LAYERS + 1 parts: one a layer, then embedding, last norm and head."""
    for layer in range(LAYERS):
        yield layer_tensors(source, layer)
    embedding = source.weight("token_embd")[vocabulary.source_rows]
    yield {
        "transformer.wte.weight": _fp16(embedding),
        "transformer.ln_f.weight": _fp16(source.weight("output_norm")),
        "lm_head.weight": _fp16(embedding),
    }


def layer_tensors(source: GgufFile, layer: int) -> dict[str, Tensor]:
    """The 27 tensors of one layer."""
    ours, theirs = f"transformer.h.{layer}", f"blk.{layer}"
    heads = np.concatenate(
        [
            _half_rotated(source.weight(f"{theirs}.attn_q"), HEADS),
            _half_rotated(source.weight(f"{theirs}.attn_k"), KV_HEADS),
            source.weight(f"{theirs}.attn_v"),
        ]
    )
    linears = {
        "attn.c_attn": _quantized(heads, repeat=_repeated_heads()),
        "attn.c_proj": _quantized(source.weight(f"{theirs}.attn_output")),
        "mlp.w1": _quantized(source.weight(f"{theirs}.ffn_up")),
        "mlp.w2": _quantized(source.weight(f"{theirs}.ffn_gate")),
        "mlp.c_proj": _quantized(source.weight(f"{theirs}.ffn_down")),
    }
    tensors = {
        f"{ours}.ln_1.weight": _fp16(source.weight(f"{theirs}.attn_norm")),
        f"{ours}.ln_2.weight": _fp16(source.weight(f"{theirs}.ffn_norm")),
    }
    for module, parts in linears.items():
        tensors |= {f"{ours}.{module}.{part}": tensor for part, tensor in parts.items()}
    return tensors


def _half_rotated(weight: Float, heads: int) -> Float:
    """Rows of q or k from llama.cpp's order (x0 y0 x1 y1 ..) to x0 x1 .. y0 y1 .. within each head."""
    pairs = weight.reshape(heads, HEAD_DIM // 2, 2, HIDDEN)
    return pairs.swapaxes(1, 2).reshape(heads * HEAD_DIM, HIDDEN)


def _repeated_heads() -> NDArray[np.int64]:
    """For each of the 3 * 576 outputs of c_attn, the output of [q | k | v] before k and v heads are repeated."""
    query = np.arange(HEADS * HEAD_DIM)
    key = np.arange(KV_HEADS * HEAD_DIM).reshape(KV_HEADS, HEAD_DIM)
    repeated = key.repeat(HEADS // KV_HEADS, axis=0).reshape(-1)
    return np.concatenate([query, HEADS * HEAD_DIM + repeated, (HEADS + KV_HEADS) * HEAD_DIM + repeated])


def _quantized(weight: Float, repeat: NDArray[np.int64] | None = None) -> Mapping[str, Tensor]:
    """The stored tensors of a linear layer `[out, in]`; `repeat` lists the outputs to take, some more than once.

    Outputs are quantised independently of each other, so repeating afterwards is exact and costs nothing.
    """
    found = quantize_rtn_ls(np.ascontiguousarray(weight.T), GROUP_SIZE)
    outputs = slice(None) if repeat is None else repeat
    scales = torch.from_numpy(np.ascontiguousarray(found.scales[:, outputs]))
    return {
        "qweight": gptq.pack_weight(torch.from_numpy(found.codes[:, outputs]), BITS),
        "qzeros": gptq.pack_zeros(torch.from_numpy(found.zeros[:, outputs]), BITS),
        "scales": scales,
        "g_idx": gptq.trivial_g_idx(weight.shape[1], GROUP_SIZE),
        "bias": torch.zeros(scales.shape[1], dtype=torch.float16),
    }


def _fp16(values: Float) -> Tensor:
    return torch.from_numpy(values.astype(np.float16))
