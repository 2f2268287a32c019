"""One suite for every linear backend that this machine can run: the product, against exact arithmetic, within a bound
that is derived and not guessed.

With u the unit roundoff of the activations' dtype (2**-8 for bf16, whose significand has 8 bits; 2**-24 for fp32), s
the scale, q the code and z the zero point of a weight w = s * (q - z), a backend computes y = sum(x * w') + bias, and

    our CPU kernels round x first: to 8 bits, in blocks of 32 inputs. What the blocks become is computed here as well,
    and within a block the products are exact integers;
    torch's int4 kernels round s to bf16, and (8 - z) * s once more. Either error is the same for a whole group, so to
    first order it moves the sum by at most u * |sum of x*w over the group| and u * |(8 - z) * s * sum of x over it|;
    our GPU kernels sum four products in fp16, each rounded: at most 4 * u * sum(|x * w|) more;
    the reference, and torch's kernel on GPUs, round each weight to the dtype: at most u * sum(|x * w|);
    K products are summed in fp32: at most K * 2**-23 * sum(|x * w'|), whatever the order;
    the sum, the bias and their sum are each rounded to the dtype: u * |sum|, u * |bias|, u * |y|.
"""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worker.model import gptq
from worker.model.backends import BACKENDS, choose
from worker.model.cpu import library
from worker.model.errors import BackendError
from worker.model.linear import GptqWeight, LinearBackend

CPU_KERNELS = library.why_not() is None
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}


@dataclass(frozen=True)
class Layer:
    """A random quantised layer."""

    inputs: int = 256
    outputs: int = 192
    bits: int = 4
    group_size: int = 64
    sym: bool = False
    bias: bool = False
    act_order: bool = False


LAYERS = {
    "groups of 32": Layer(group_size=32),
    "groups of 64": Layer(),
    "groups of 128": Layer(group_size=128),
    "symmetric": Layer(sym=True),
    "bias": Layer(bias=True),
    "the demo's c_attn": Layer(inputs=576, outputs=1728, group_size=32, bias=True),
    "the demo's mlp.c_proj": Layer(inputs=1536, outputs=576, group_size=32),
    "Qwen's mlp.c_proj, narrower": Layer(inputs=5504, outputs=64, group_size=128, sym=True),
    "act-order": Layer(act_order=True),
    "int8": Layer(bits=8),
    "an odd group size": Layer(inputs=240, group_size=48),
    "a last group that is not full": Layer(inputs=80),
    "outputs that fill no tile": Layer(outputs=24),
}


def made(layer: Layer, device: str) -> tuple[GptqWeight, Tensor | None]:
    """Weight and bias of a layer."""
    generator = torch.Generator().manual_seed(layer.inputs + layer.outputs)
    levels, groups = 2**layer.bits, -(-layer.inputs // layer.group_size)
    codes = torch.randint(0, levels, (layer.inputs, layer.outputs), generator=generator)
    zeros = torch.randint(1, levels + 1, (groups, layer.outputs), generator=generator)
    if layer.sym:
        zeros.fill_(levels // 2)
    scales = 0.01 * (0.5 + torch.rand(groups, layer.outputs, generator=generator))
    g_idx = gptq.trivial_g_idx(layer.inputs, layer.group_size)
    if layer.act_order:
        g_idx = g_idx[torch.randperm(layer.inputs, generator=generator)]
    weight = GptqWeight(
        qweight=gptq.pack_weight(codes, layer.bits).to(device),
        qzeros=gptq.pack_zeros(zeros, layer.bits).to(device),
        scales=scales.to(device, torch.float16),
        g_idx=g_idx.to(device),
        bits=layer.bits,
        group_size=layer.group_size,
    )
    bias = torch.randn(layer.outputs, generator=generator).bfloat16() if layer.bias else None
    return weight, bias


def check(layer: Layer, backend: LinearBackend, device: str, dtype: torch.dtype, rows: int) -> None:
    weight, bias = made(layer, device)
    x = torch.randn(rows, layer.inputs, generator=torch.Generator().manual_seed(rows)).to(dtype)
    linear = backend.build(weight, None if bias is None else bias.to(device, dtype), dtype)
    y = linear(x.to(device))
    assert y.dtype == dtype
    assert y.shape == (rows, layer.outputs)

    u, bits = ROUNDOFF[dtype], weight.bits
    if backend.name == "cpu-int8":
        x = in_8_bits(x.float())
    x, w = x.double(), weight.dequantize(torch.float32).double().cpu()
    size = x.abs() @ w.abs()
    moved = torch.zeros_like(size)
    if backend.name.startswith("int4pack"):
        scales = weight.scales.double().cpu()
        zeros = (8 - gptq.unpack_zeros(weight.qzeros, bits).cpu()) * scales
        for group in range(len(scales)):
            mine = weight.g_idx.cpu() == group
            moved += u * (
                (x[:, mine] @ w[mine]).abs() + (x[:, mine].sum(1, keepdim=True) * zeros[group]).abs()
            )
    if backend.name not in ("int4pack-cpu", "cpu-int8"):
        moved += u * size
    if backend.name == "triton-int4":
        moved += 4 * u * size
    added = torch.zeros(layer.outputs).double() if bias is None else bias.double()
    exact = x @ w + added
    summed = moved + layer.inputs * 2**-23 * (size + moved)
    bound = summed + u * ((x @ w).abs() + summed) + u * added.abs() + u * (exact.abs() + summed)
    error = (y.double().cpu() - exact).abs()
    # 2 % for terms of the order of u squared.
    assert (error <= 1.02 * bound).all(), f"{(error / bound).max():.2f} times the bound"
    if backend.name in ("int4pack-cpu", "cpu-int8"):
        # The bound means something: it is small beside the values.
        assert bound.mean() < 0.1 * exact.abs().mean()


def in_8_bits(x: Tensor) -> Tensor:
    """x fp32 `[n, in]` as our CPU kernels see it; no number moves by more than 1/254 of its block's greatest."""
    blocks = F.pad(x, (0, -x.shape[1] % 32)).view(len(x), -1, 32)
    top = blocks.abs().amax(-1, keepdim=True)
    # A quotient and a product as in the kernel (`127 / top` would be another): a tie must fall to the same side.
    seen = (blocks * (torch.full_like(top, 127) / top)).round() * (top / 127)
    assert ((seen - blocks).abs() <= top / 254 * (1 + 2**-16)).all()
    return seen.flatten(1)[:, : x.shape[1]]


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("dtype", list(ROUNDOFF), ids=str)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_every_usable_backend(layer: Layer, dtype: torch.dtype, rows: int) -> None:
    used = set()
    for device in DEVICES:
        weight, _ = made(layer, device)
        for backend in BACKENDS:
            if backend.why_not(weight, dtype) is None:
                check(layer, backend, device, dtype, rows)
                used.add(backend.name)
    assert "reference" in used
    easy = ["groups of", "symmetric", "bias", "the demo's", "Qwen's"]
    if dtype == torch.bfloat16 and any(
        LAYERS[name] is layer for name in LAYERS if name.startswith(tuple(easy))
    ):
        assert "int4pack-cpu" in used
    if (
        dtype == torch.bfloat16
        and CPU_KERNELS
        and LAYERS["act-order"] is not layer
        and layer.group_size != 48
    ):
        assert "cpu-int8" in used


@pytest.mark.parametrize(
    ("layer", "dtype", "reason"),
    [
        (Layer(), torch.float32, "computes in bfloat16, not float32"),
        (Layer(bits=8), torch.bfloat16, "reads 4-bit weights, not 8-bit"),
        (Layer(act_order=True), torch.bfloat16, "needs consecutive inputs in a group"),
        (Layer(inputs=240, group_size=48), torch.bfloat16, "needs a group size of 32, 64, 128, 256, not 48"),
        (Layer(inputs=80), torch.bfloat16, "needs whole groups: 80 inputs are not a multiple of 64"),
        (Layer(outputs=24), torch.bfloat16, "needs a multiple of 16 outputs, not 24"),
    ],
)
def test_what_torchs_cpu_kernel_cannot_do_is_said(layer: Layer, dtype: torch.dtype, reason: str) -> None:
    weight, _ = made(layer, "cpu")
    assert choose(weight, dtype).name != "int4pack-cpu"
    with pytest.raises(BackendError, match=f"^int4pack-cpu {reason}"):
        choose(weight, dtype, forced="int4pack-cpu")


@pytest.mark.parametrize(
    ("layer", "dtype", "reason"),
    [
        (Layer(), torch.float32, "serves bfloat16, not float32"),
        (Layer(act_order=True), torch.bfloat16, "needs consecutive inputs in a group"),
        (Layer(inputs=240, group_size=48), torch.bfloat16, "needs a group size in multiples of 32, not 48"),
    ],
)
def test_what_our_cpu_kernels_cannot_do_is_said_and_goes_to_the_reference(
    layer: Layer, dtype: torch.dtype, reason: str
) -> None:
    weight, _ = made(layer, "cpu")
    assert choose(weight, dtype).name == "reference"
    with pytest.raises(BackendError, match=f"^cpu-int8 {reason}"):
        choose(weight, dtype, forced="cpu-int8")


def test_the_choice() -> None:
    weight, _ = made(Layer(), "cpu")
    assert choose(weight, torch.bfloat16).name == ("cpu-int8" if CPU_KERNELS else "int4pack-cpu")
    assert choose(weight, torch.bfloat16, forced="reference").name == "reference"
    with pytest.raises(BackendError, match="int4pack-cuda runs on NVIDIA GPUs, not on cpu"):
        choose(weight, torch.bfloat16, forced="int4pack-cuda")
    with pytest.raises(
        BackendError,
        match="there is no linear backend 'marlin'; known are triton-int4, int4pack-cuda, cpu-int8, int4pack-cpu",
    ):
        choose(weight, torch.bfloat16, forced="marlin")
