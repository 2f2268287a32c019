"""The C++ kernels themselves: both instruction sets, edges of shapes, and sums that depend on nothing but their row."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.model.test_linear import Layer, in_8_bits, made
from worker.model.cpu import build, library
from worker.model.cpu.linear import CpuKernels

pytestmark = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))

SHAPES = {
    "one panel": Layer(inputs=64, outputs=32),
    "a last panel and group that are not full": Layer(inputs=104, outputs=40, bias=True),
    "less than one block": Layer(inputs=24, outputs=8, group_size=32),
    "groups of 32": Layer(inputs=576, outputs=200, group_size=32, bias=True),
    "groups of 128, symmetric": Layer(inputs=640, outputs=64, group_size=128, sym=True),
    "one group": Layer(inputs=256, outputs=48, group_size=256),
    "8 bits": Layer(inputs=320, outputs=72, bits=8, group_size=32),
}


@pytest.fixture(params=["avx2", "avx512-vnni"])
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    try:
        yield library.use(request.param)
    except ValueError as missing:
        pytest.skip(str(missing))
    finally:
        library.use()


def inputs(layer: Layer, rows: int) -> Tensor:
    return torch.randn(rows, layer.inputs, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("layer", SHAPES.values(), ids=SHAPES)
def test_products_are_those_of_the_rounded_activations(layer: Layer, instructions: str) -> None:
    weight, bias = made(layer, "cpu")
    x = inputs(layer, 11)
    y = CpuKernels().build(weight, bias, torch.bfloat16)(x)
    w = weight.dequantize(torch.float32).double()
    exact = in_8_bits(x).double() @ w + (0 if bias is None else bias.double())
    # What is left is fp32's summing over blocks and groups.
    size = x.double().abs() @ w.abs() + exact.abs()
    assert ((y - exact).abs() <= (layer.inputs / 32 + 8) * 2**-23 * size).all()


@pytest.mark.parametrize("layer", SHAPES.values(), ids=SHAPES)
def test_a_row_has_the_same_bits_beside_any_others_and_with_any_instructions(layer: Layer) -> None:
    weight, bias = made(layer, "cpu")
    linear, x = CpuKernels().build(weight, bias, torch.bfloat16), inputs(layer, 64)
    together = linear(x)
    for count in (1, 2, 3, 4, 7, 8, 13, 63):
        assert torch.equal(linear(x[-count:]), together[-count:])
    try:
        library.use("avx2")
        assert torch.equal(linear(x), together)
    finally:
        library.use()


def test_rows_may_lie_apart_and_at_any_address() -> None:
    layer = SHAPES["groups of 32"]
    weight, bias = made(layer, "cpu")
    linear, x = CpuKernels().build(weight, bias, torch.bfloat16), inputs(layer, 5).bfloat16()
    odd = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)
    apart = torch.empty(5, 2, layer.inputs, dtype=x.dtype)[:, 1].copy_(x)
    assert torch.equal(linear(odd), linear(x))
    assert torch.equal(linear(apart), linear(x))


def test_blocks_of_zeros_and_what_is_not_finite() -> None:
    weight, _ = made(SHAPES["one panel"], "cpu")
    linear = CpuKernels().build(weight, None, torch.bfloat16)
    x = torch.zeros(4, 64)
    x[1, 3], x[2, 40] = float("nan"), float("inf")
    y = linear(x)
    assert (y[0] == 0).all()
    assert not y[1].isfinite().any()
    assert not y[2].isfinite().any()
    assert (y[3] == 0).all()


def test_a_product_that_is_computed_by_many_threads_at_once_and_called_from_many() -> None:
    from concurrent.futures import ThreadPoolExecutor

    layer = SHAPES["groups of 32"]
    weight, bias = made(layer, "cpu")
    linear, x = CpuKernels().build(weight, bias, torch.bfloat16), inputs(layer, 9)
    expected, threads = linear(x), torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        with ThreadPoolExecutor(4) as callers:
            assert all(torch.equal(y, expected) for y in callers.map(linear, [x] * 200))
    finally:
        torch.set_num_threads(threads)


def in_a_new_process(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


REASON = "from worker.model.cpu import library; print(library.why_not())"


def test_without_a_compiler_the_reason_is_said(tmp_path: Path) -> None:
    said = in_a_new_process(REASON, XDG_CACHE_HOME=str(tmp_path), PATH=str(tmp_path), CXX="")
    assert said == "is not built, and there is no C++ compiler (c++, g++, clang++ or $CXX)"


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'x.cpp:1: error: no such thing' >&2\nexit 1\n")
    broken.chmod(0o755)
    said = in_a_new_process(REASON, XDG_CACHE_HOME=str(tmp_path), CXX=str(broken))
    assert said == "does not compile: x.cpp:1: error: no such thing"
    assert not list(tmp_path.rglob("*.so"))


def test_the_library_is_built_once_and_found_again(tmp_path: Path) -> None:
    first = build.build(tmp_path)
    stamp = first.stat().st_mtime_ns
    assert build.build(tmp_path) == first
    assert first.stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
