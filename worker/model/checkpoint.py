"""A checkpoint folder to a `QwenModel`: GPTQ int4 and int8, and plain fp16 or bf16, in one file or in shards.

Tensors are read one after the other and packed for the chosen kernel at once, so memory never holds the
checkpoint twice. A tensor that is missing, cut off, of another shape, or in a format that would be misread is a
CheckpointError with the tensor's and the file's name.
"""

import logging
from collections import defaultdict
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from worker.model import backends, faults, layout
from worker.model.config import QuantizationConfig, QwenConfig, load_config
from worker.model.cpu import decoder, library
from worker.model.cpu.head import Head, Int8Head
from worker.model.errors import BackendError, CheckpointError
from worker.model.gpu import decoder as gpu_decoder
from worker.model.gpu import support as gpu
from worker.model.gpu.head import GpuHead, GpuInt8Head
from worker.model.linear import Dense, GptqWeight, Linear
from worker.model.qwen import Block, QwenModel
from worker.model.weight_files import WeightFiles

log = logging.getLogger(__name__)

Weights = Literal["int4", "dequantized"]
HeadBits = Literal[16, 8]


def load_model(
    path: Path,
    *,
    device: torch.device | str,
    weights: Weights,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    head_bits: HeadBits = 16,
    copies: bool = False,
) -> QwenModel:
    """Load the checkpoint in the folder `path` onto `device`.

    weights  "int4" keeps quantised layers as they are stored, "dequantized" unpacks them into plain matrices
             of `dtype`. A checkpoint that is not quantised is plain either way.
    dtype    of the linear layers; by default what the kernels there compute fastest: fp32 for plain matrices
             on a CPU, fp16 for our kernels on a GPU, else bf16.
    backend  forces a linear backend by name, for quantised layers kept as stored. BackendError if it cannot.
    head_bits  8 rounds the head where our kernels serve (`worker.model.cpu.head`, `worker.model.gpu.head`).
             BackendError elsewhere.
    copies   also keep the layers in 16 bits for steps of many rows, on GPUs whose free memory it takes a tenth of.
    """
    config = load_config(path)
    loader = _Loader(path, config, torch.device(device), weights, dtype, backend, head_bits)
    model = gpu_decoder.fused(decoder.fused(loader.model()), copies=copies)
    log.info("loaded %s on %s: %s", path, model.device, model.backends)
    return model


def _default_dtype(config: QwenConfig, device: torch.device, weights: Weights) -> torch.dtype:
    quantized = config.quantization
    plain = quantized is None or quantized.bits != 4 or weights == "dequantized"
    if device.type == "cpu":
        return torch.float32 if plain else torch.bfloat16
    ours = quantized is not None and not plain and quantized.sym and not quantized.desc_act
    return torch.float16 if ours and gpu.why_not(device) is None else torch.bfloat16


class _Loader:
    """Reads one checkpoint once."""

    def __init__(
        self,
        path: Path,
        config: QwenConfig,
        device: torch.device,
        weights: Weights,
        dtype: torch.dtype | None,
        backend: str | None,
        head_bits: HeadBits,
    ) -> None:
        self._config = config
        self._device = device
        self._weights = weights
        self._dtype = dtype or _default_dtype(config, device, weights)
        self._backend = backend
        self._head_bits = head_bits
        self._files = WeightFiles.open(path)
        self._names: defaultdict[str, set[str]] = defaultdict(set)
        try:
            expected = list(layout.expected_tensors(config))
        except ValueError as error:
            raise CheckpointError(f"{path}: quantization_config cannot be right: {error}") from error
        # Every header first: a checkpoint that is not complete fails before minutes of reading.
        for tensor in expected:
            if problem := faults.header_fault(tensor, self._files.stored):
                raise CheckpointError(f"{path}: {problem}")

    def model(self) -> QwenModel:
        return QwenModel(
            config=self._config,
            wte=self._read("transformer.wte.weight"),
            blocks=[self._block(layer) for layer in range(self._config.num_layers)],
            ln_f=self._norm("transformer.ln_f.weight"),
            lm_head=self._head(),
            dtype=self._dtype,
            backends={kind: " and ".join(sorted(names)) for kind, names in sorted(self._names.items())},
        )

    def _head(self) -> Linear:
        weight = self._read("lm_head.weight")
        dtype = torch.float32 if self._dtype == torch.float32 else torch.float16
        ours_on_gpu = self._dtype == torch.float16 and gpu.why_not(self._device) is None
        if self._device.type == "cpu":
            reason = library.why_not()
        else:
            reason = (
                None if ours_on_gpu else "needs our kernels, which do not serve this model on this device"
            )
        if dtype == torch.float32:
            reason = "rounds, and this model computes in float32"
        if self._head_bits == 8 and reason is not None:
            raise BackendError(f"the head of 8 bits {reason}")
        if ours_on_gpu:
            self._names["lm_head"].add(f"triton {'int8' if self._head_bits == 8 else 'float16'}")
            return GpuInt8Head.of(weight.to(dtype)) if self._head_bits == 8 else GpuHead(weight.to(dtype))
        if reason is not None:
            self._names["lm_head"].add(f"dense {_short(dtype)}")
            return Dense(weight.to(dtype), None)
        if self._head_bits == 8:
            self._names["lm_head"].add("cpu-int8")
            return Int8Head.of(weight)
        plain = weight.to(torch.float16) if weight.dtype == torch.float32 else weight
        self._names["lm_head"].add(f"cpu {_short(plain.dtype)}")
        return Head.of(plain)

    def _block(self, layer: int) -> Block:
        block = f"transformer.h.{layer}"
        linear = {kind.name: self._linear(block, kind) for kind in layout.linears(self._config)}
        return Block(
            ln_1=self._norm(f"{block}.ln_1.weight"),
            c_attn=linear["attn.c_attn"],
            attn_c_proj=linear["attn.c_proj"],
            ln_2=self._norm(f"{block}.ln_2.weight"),
            w1=linear["mlp.w1"],
            w2=linear["mlp.w2"],
            mlp_c_proj=linear["mlp.c_proj"],
        )

    def _linear(self, block: str, kind: layout.Linear) -> Linear:
        name = f"{block}.{kind.name}"
        bias = self._bias(f"{name}.bias")
        quantization = self._config.quantization
        if quantization is None:
            self._names[kind.name].add(f"dense {_short(self._dtype)}")
            return Dense(self._read(f"{name}.weight").to(self._dtype), bias)
        packed = self._packed(name, quantization)
        if self._weights == "dequantized":
            self._names[kind.name].add(f"dense {_short(self._dtype)}")
            return Dense(packed.dequantize(self._dtype).T.contiguous(), bias)
        chosen = backends.choose(packed, self._dtype, forced=self._backend)
        self._names[kind.name].add(chosen.name)
        return chosen.build(packed, bias, self._dtype)

    def _packed(self, name: str, quantization: QuantizationConfig) -> GptqWeight:
        qzeros, g_idx = self._read(f"{name}.qzeros"), self._read(f"{name}.g_idx")
        if problem := faults.zeros_fault(qzeros, quantization):
            raise self._error(f"{name}.qzeros", problem)
        if problem := faults.groups_fault(g_idx, quantization):
            raise self._error(f"{name}.g_idx", problem)
        return GptqWeight(
            qweight=self._read(f"{name}.qweight"),
            qzeros=qzeros,
            scales=self._read(f"{name}.scales"),
            g_idx=g_idx,
            bits=quantization.bits,
            group_size=quantization.group_size,
        )

    def _bias(self, name: str) -> Tensor | None:
        """None where there is nothing to add: AutoGPTQ stores zeros for layers that have no bias."""
        if name not in self._files.stored:
            return None
        bias = self._read(name)
        return bias.to(self._dtype) if bias.any() else None

    def _norm(self, name: str) -> Tensor:
        return self._read(name).to(torch.float32)

    def _read(self, name: str) -> Tensor:
        return self._files.read(name).to(self._device)

    def _error(self, name: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._files.stored[name].file}: {name} {problem}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
