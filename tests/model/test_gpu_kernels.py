"""The Triton kernels against plain formulas in fp32: on a GPU, or in Triton's interpreter where TRITON_INTERPRET=1."""

import pytest
import torch
import torch.nn.functional as F

from tests.model.reader import Reader
from tests.model.tiny import Tiny
from worker.model import gptq
from worker.model.checkpoint import load_model
from worker.model.gpu import support, wgmma
from worker.model.gpu.decoder import GpuQwenModel
from worker.model.gpu.head import GpuHead, GpuInt8Head
from worker.model.gpu.linear import FEW, GpuLinear, TritonInt4, packed
from worker.model.gpu.plan import Role
from worker.model.gpu.rows import Int4Rows, Stream
from worker.model.linear import GptqWeight
from worker.model.rope import rotation

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REASON = support.why_not(DEVICE)
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"the kernels cannot run here: it {REASON}")
EPS = 1e-6


def layer(inputs: int, outputs: int, group: int, *, bias: bool = False) -> tuple[GpuLinear, torch.Tensor]:
    """A random layer, and its exact weight `[in, out]` in fp32."""
    draw = torch.Generator().manual_seed(inputs + outputs)
    codes = torch.randint(0, 16, (inputs, outputs), generator=draw)
    scales = (0.001 + 0.01 * torch.rand(inputs // group, outputs, generator=draw)).half()
    added = torch.randn(outputs, generator=draw).half().to(DEVICE) if bias else None
    exact = (codes - 8).float() * scales.float().repeat_interleave(group, 0)
    made = GpuLinear(
        packed(codes.to(torch.uint8).to(DEVICE)), scales.T.contiguous().to(DEVICE), added, inputs, group
    )
    return made, exact.to(DEVICE)


def error(got: torch.Tensor, right: torch.Tensor) -> float:
    return ((got.float() - right).norm() / right.norm()).item()


@pytest.mark.parametrize("rows", range(1, FEW + 1))
@pytest.mark.parametrize(("inputs", "outputs", "group"), [(256, 64, 64), (576, 48, 32), (5504, 64, 128)])
def test_few_rows(rows: int, inputs: int, outputs: int, group: int) -> None:
    """Plain, added to a residual, and behind a norm; nothing of what is not to be written is."""
    linear, exact = layer(inputs, outputs, group, bias=True)
    x = torch.randn(rows, inputs, device=DEVICE).half()
    bias = linear.bias
    assert bias is not None
    assert error(linear(x), x.float() @ exact + bias.float()) < 1e-3
    residual = torch.randn(rows + 1, outputs, device=DEVICE)
    before = residual.clone()
    linear.few(x, residual[:rows], add=True)
    assert error(residual[:rows] - before[:rows], x.float() @ exact + bias.float()) < 1e-3
    assert torch.equal(residual[rows:], before[rows:])
    hidden, gamma = torch.randn(rows, inputs, device=DEVICE), torch.rand(inputs, device=DEVICE) + 0.5
    normed = F.rms_norm(hidden, (inputs,), gamma, EPS)
    out = torch.full((rows, outputs), torch.nan, device=DEVICE).half()
    linear.few(hidden, out, gamma=gamma, eps=EPS)
    assert error(out, normed @ exact + bias.float()) < 1e-3


def test_gate_and_up() -> None:
    linear, exact = layer(256, 96, 64)
    hidden, gamma = torch.randn(3, 256, device=DEVICE), torch.rand(256, device=DEVICE) + 0.5
    both = F.rms_norm(hidden, (256,), gamma, EPS) @ exact
    out = torch.full((3, 48), torch.nan, device=DEVICE).half()
    linear.few(hidden, out, gamma=gamma, eps=EPS, silu=True)
    assert error(out, F.silu(both[:, 0::2]) * both[:, 1::2]) < 2e-3


def test_every_second_output_is_a_layer_too() -> None:
    linear, exact = layer(256, 96, 64, bias=True)
    x = torch.randn(2, 256, device=DEVICE).half()
    for first in (0, 1):
        half = linear.every_second(first)
        assert half.words.data_ptr() - linear.words.data_ptr() == 4 * 32 * first
        assert torch.equal(half(x), linear(x)[:, first::2])
        assert error(half.dense().T, exact[:, first::2]) < 1e-3


def test_large_activations_do_not_overflow() -> None:
    linear, exact = layer(256, 64, 64)
    x = torch.full((1, 256), 16_000.0, device=DEVICE).half()
    assert linear.few(x, torch.empty(1, 64, device=DEVICE), add=False).isfinite().all()
    out = torch.zeros(1, 64, device=DEVICE)
    assert error(linear.few(x, out, add=True), x.float() @ exact) < 1e-2


@pytest.fixture(scope="module", params=["alone", "beside attention"])
def on_tensor_cores(
    request: pytest.FixtureRequest,
) -> tuple[Int4Rows, dict[Role, tuple[GpuLinear, torch.Tensor]]]:
    """The kernels for a layer whose sizes no tile divides, its products, and their exact weights."""
    if (reason := support.why_not_compiled(DEVICE)) is not None:
        pytest.skip(f"the kernels in CUDA C++ cannot run here: they {reason}")
    made: dict[Role, tuple[GpuLinear, torch.Tensor]] = {
        "c_attn": layer(2048, 6144 + 16, 128, bias=True),
        "attn_c_proj": layer(2048, 2048 + 128, 128),
        "gate_up": layer(2048, 1024, 128),
        "mlp_c_proj": layer(5504, 384, 128),
    }
    roles = {role: linear for role, (linear, _) in made.items()}
    assert Int4Rows.why_not([roles]) is None
    if request.param == "alone":
        return Int4Rows(roles), made
    if torch.cuda.get_device_capability(DEVICE) != wgmma.CAPABILITY:
        pytest.skip("this GPU has no such kernels")
    return Int4Rows(roles, wgmma.BESIDE, first=True), made


@pytest.mark.parametrize("rows", range(1, wgmma.MOST + 1))
def test_rows_on_tensor_cores(
    on_tensor_cores: tuple[Int4Rows, dict[Role, tuple[GpuLinear, torch.Tensor]]], rows: int
) -> None:
    """Every role, against fp32; nothing behind the last row is written. Weights and activations are fp16: 2**-11."""
    kernels, made = on_tensor_cores
    if rows > kernels.most:
        pytest.skip(f"{kernels.most} rows are the most here")
    placed = wgmma.rearranged if kernels.placed(rows) else torch.clone
    gamma = torch.rand(2048, device=DEVICE) + 0.5
    hidden = 40 * torch.randn(rows, 2048, device=DEVICE)
    squares = hidden.square().view(rows, 128, 16).sum(2)
    stream = Stream(hidden, placed((hidden * gamma / 16).half()), squares)
    normed = F.rms_norm(hidden, (2048,), gamma, EPS)
    for role in ("c_attn", "gate_up"):
        linear, exact = made[role]
        right = normed @ exact
        if linear.bias is not None:
            right += linear.bias.float()
        right = placed(F.silu(right[:, 0::2]) * right[:, 1::2]) if role == "gate_up" else right
        out = torch.full((rows + 1, right.shape[1]), torch.nan, device=DEVICE).half()
        kernels.normed(role, linear, stream, EPS, out[:rows])
        assert error(out[:rows], right) < 2e-3
        assert out[rows:].isnan().all()
    for role in ("attn_c_proj", "mlp_c_proj"):
        linear, exact = made[role]
        outputs, norm = linear.out_features, torch.rand(linear.out_features, device=DEVICE) + 0.5
        x = torch.randn(rows, linear.in_features, device=DEVICE).half()
        whole = Stream.empty(rows + 1, outputs, DEVICE)
        for part in whole:
            part.fill_(3.0)
        behind = Stream._make(part[:rows] for part in whole)
        kernels.add(role, linear, placed(x) if role == "mlp_c_proj" else x, behind, norm)
        assert error(behind.hidden - 3, x.float() @ exact) < 1e-3
        assert error(behind.scaled, placed(behind.hidden * norm / 16)) < 1e-3
        assert error(behind.squares, behind.hidden.square().view(rows, -1, 16).sum(2)) < 1e-5
        assert all(bool((part[rows:] == 3).all()) for part in whole)


def test_the_same_rows_are_the_same_bits_in_every_launch(
    on_tensor_cores: tuple[Int4Rows, dict[Role, tuple[GpuLinear, torch.Tensor]]],
) -> None:
    kernels, made = on_tensor_cores
    for rows in (4, 8, 16, 32, 48, 64):
        if rows > kernels.most:
            break
        x, linear = torch.randn(rows, 5504, device=DEVICE).half(), made["mlp_c_proj"][0]
        got = []
        for _ in range(3):
            stream = Stream.empty(rows, linear.out_features, DEVICE)
            stream.hidden.zero_()
            kernels.add("mlp_c_proj", linear, x, stream, None)
            got.append(stream.hidden)
        assert torch.equal(got[0], got[1])
        assert torch.equal(got[0], got[2])


@pytest.mark.parametrize("rows", [1, 3, 40, 70])
def test_heads(rows: int) -> None:
    """In 8 bits a weight is off by up to 1/254 of the greatest of its row: here 0.004 of 3, evenly spread."""
    if rows > 3 and support.INTERPRETED:
        pytest.skip("takes minutes in the interpreter")
    weight, x = torch.randn(500, 192, device=DEVICE).half(), torch.randn(rows, 192, device=DEVICE).half()
    right = x.float() @ weight.float().T
    assert error(GpuHead(weight)(x), right) < 1e-3
    assert error(GpuInt8Head.of(weight)(x), right) < 1.5e-2


@pytest.mark.skipif(support.INTERPRETED, reason="takes minutes in the interpreter")
@pytest.mark.parametrize("group", [64, 128])
def test_the_whole_model_is_that_of_the_cpu(tmp_path_factory: pytest.TempPathFactory, group: int) -> None:
    """In groups of 128 through the kernels on tensor cores, where they serve."""
    folder = Tiny(sym=True, group_size=group).write(tmp_path_factory.mktemp("tiny"))
    ids = torch.randint(0, 480, (290,), generator=torch.Generator().manual_seed(3))
    right = Reader(load_model(folder, device="cpu", weights="dequantized")).read(ids)
    ours = load_model(folder, device=DEVICE, weights="int4", dtype=torch.float16, backend="triton-int4")
    assert isinstance(ours, GpuQwenModel)
    reader = Reader(ours)
    # Pieces of many rows and of few.
    got = torch.cat([reader.read(piece.to(DEVICE)) for piece in ids.split([14, 1, 3, 3, 20, 60, 60, 129])])
    assert error(got.cpu(), right) < 1e-2


@pytest.mark.skipif(support.INTERPRETED, reason="takes minutes in the interpreter")
def test_all_layers_of_one_row_in_one_launch(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Token by token into an empty cache over more pages than a head has blocks; each again, with the same bits."""
    tiny = Tiny(hidden=2048, head_dim=128, mlp=5504, sym=True, group_size=128, other_biases="absent")
    folder, count = tiny.write(tmp_path_factory.mktemp("wide")), 300
    ours = load_model(folder, device=DEVICE, weights="int4", dtype=torch.float16)
    if not isinstance(ours, GpuQwenModel) or ours.stack is None:
        pytest.skip("this GPU has no such launch")
    ids = torch.randint(0, 480, (count,), generator=torch.Generator().manual_seed(3))
    right = Reader(load_model(folder, device="cpu", weights="dequantized")).read(ids)
    # What is not written yet is not a number.
    caches = [torch.full((2, 24, 16, 16, 128), torch.nan, device=DEVICE).half() for _ in ours.layers]
    table = torch.randperm(24, device=DEVICE)[None, :20].to(torch.int32).contiguous()
    turns, tokens, got = rotation(count, 128, ours.config.rope_base, DEVICE), ids.to(DEVICE), []
    for place in range(count):
        position = torch.tensor([place], device=DEVICE)
        row = (tokens[place : place + 1], caches, table, position, turns.at(position))
        hidden = ours.stack(*row)
        assert torch.equal(ours.stack(*row), hidden)
        got.append(ours.logits(hidden))
    assert error(torch.cat(got).cpu(), right) < 1e-2


def test_why_not_names_what_it_cannot() -> None:
    codes = torch.zeros(64, 16, dtype=torch.int64)

    def weight(zero: int = 8, bits: int = 4) -> GptqWeight:
        return GptqWeight(
            gptq.pack_weight(codes, bits).to(DEVICE),
            gptq.pack_zeros(torch.full((2, 16), zero), bits).to(DEVICE),
            torch.ones(2, 16).half().to(DEVICE),
            gptq.trivial_g_idx(64, 32).to(DEVICE),
            bits,
            32,
        )

    backend = TritonInt4()
    assert backend.why_not(weight(), torch.float16) is None
    assert "float16, not bfloat16" in str(backend.why_not(weight(), torch.bfloat16))
    assert "zero points other than 8" in str(backend.why_not(weight(zero=7), torch.float16))
    assert "4-bit weights" in str(backend.why_not(weight(bits=8), torch.float16))
