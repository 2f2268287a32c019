"""CUDA C++ compiled when the model is loaded, by the NVRTC library that torch's CUDA builds bring: no nvcc, no headers.

Kernels are launched through the driver, since they need what torch's own helper has no place for: launches that
overlap with the one before them, clusters of blocks, more than 48 KB of shared memory.
"""

import ctypes
import functools
import importlib.util
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

SHARED = Path(__file__).parent  # where headers for all kernels lie
LARGEST_SHARED = 227 * 1024  # bytes of a block, on compute capability 9.0
_CLUSTER, _OVERLAP, _PRIORITY = 4, 6, 8  # CUlaunchAttributeID
_FIXED_SHARED, _MAX_DYNAMIC_SHARED = 1, 8  # CUfunction_attribute


class CompileError(Exception):
    """NVRTC refused the source; the message is its log."""


class _Value(ctypes.Union):
    _fields_ = [("bytes", ctypes.c_char * 64), ("sizes", ctypes.c_uint * 3), ("flag", ctypes.c_int)]


class _Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", _Value)]


class _Config(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    ]


class Kernel(NamedTuple):
    """A function on the device."""

    function: ctypes.c_void_p

    def __call__(
        self,
        grid: tuple[int, int],
        threads: int,
        arguments: Sequence[Tensor | int | float | None],
        *,
        shared: int = 0,
        cluster: int = 1,
        overlap: bool = False,
        first: bool = False,
    ) -> None:
        """Launch on torch's current stream. An int is passed as C's int, a float as float, a tensor as its address.

        grid     blocks along x and y; `cluster` of them that follow along x form a cluster.
        shared   bytes of dynamic shared memory.
        overlap  begin while the launch before this one still runs; the kernel waits for it itself.
        first    where launches of other streams wait for room too, it has it before them.
        """
        attributes = (_Attribute * 3)()
        count = 0
        if cluster > 1:
            attributes[count].id, attributes[count].value.sizes = _CLUSTER, (cluster, 1, 1)
            count += 1
        if overlap:
            attributes[count].id, attributes[count].value.flag = _OVERLAP, 1
            count += 1
        if first:
            attributes[count].id, attributes[count].value.flag = _PRIORITY, -1
            count += 1
        stream = torch.cuda.current_stream().cuda_stream
        config = _Config((*grid, 1), (threads, 1, 1), shared, stream, attributes, count)
        values = [_c_value(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        _check(_driver().cuLaunchKernelEx(ctypes.byref(config), self.function, pointers, None))


def compiled(
    source: Path, names: Iterable[str], capability: tuple[int, int], *, exactly: bool = False
) -> tuple[bytes, list[str]]:
    """(cubin, the mangled names) of template instances such as "kernel<1, true>" for a compute capability.

    The source may include what lies beside it, and what all kernels share. `exactly`: it uses what only this capability
    has.
    """
    nvrtc, program, expressions = _nvrtc(), ctypes.c_void_p(), [name.encode() for name in names]
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None)
    for expression in expressions:
        nvrtc.nvrtcAddNameExpression(program, expression)
    architecture = b"--gpu-architecture=sm_%d%d" % capability + (b"a" if exactly else b"")
    options = [
        architecture,
        b"--std=c++17",
        b"--use_fast_math",
        *(b"--include-path=" + os.fsencode(folder) for folder in (source.parent, SHARED)),
    ]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    if failed:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise CompileError(f"{source.name}: {log.value.decode()}")
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, cubin)
    mangled, name = [], ctypes.c_char_p()
    for expression in expressions:
        nvrtc.nvrtcGetLoweredName(program, expression, ctypes.byref(name))
        mangled.append((name.value or b"").decode())
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return cubin.raw, mangled


def load(
    source: Path, names: Sequence[str], device: torch.device, *, exactly: bool = False
) -> dict[str, Kernel]:
    """Compile template instances and load them onto a device. `exactly` as in `compiled`."""
    with torch.cuda.device(device):
        torch.zeros(1, device=device)  # torch makes its context this thread's own when it is needed
        cubin, mangled = compiled(source, names, torch.cuda.get_device_capability(device), exactly=exactly)
        module, kernels = ctypes.c_void_p(), dict[str, Kernel]()
        shared = torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]
        _check(_driver().cuModuleLoadData(ctypes.byref(module), cubin))
        for name, symbol in zip(names, mangled, strict=True):
            function, fixed = ctypes.c_void_p(), ctypes.c_int()
            _check(_driver().cuModuleGetFunction(ctypes.byref(function), module, symbol.encode()))
            _check(_driver().cuFuncGetAttribute(ctypes.byref(fixed), _FIXED_SHARED, function))
            _check(_driver().cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, shared - fixed.value))
            kernels[name] = Kernel(function)
    return kernels


@functools.cache
def why_not() -> str | None:
    """Why nothing can be compiled here; None when it can. What a GPU must be able to do is not asked here."""
    try:
        _nvrtc()
        _driver()
    except OSError as error:
        return f"needs NVRTC, which comes with torch's CUDA builds: {error}"
    return None


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    major = str(torch.version.cuda).split(".")[0]
    name, found = f"libnvrtc.so.{major}", importlib.util.find_spec("nvidia")
    for folder in found.submodule_search_locations or () if found else ():
        for path in Path(folder).glob(f"*/lib/{name}"):
            # It looks for this one by its name alone, and finds what is loaded already.
            for builtins in path.parent.glob(f"libnvrtc-builtins.so.{major}.*"):
                ctypes.CDLL(str(builtins))
            return ctypes.CDLL(str(path))
    return ctypes.CDLL(name)


def _c_value(argument: Tensor | int | float | None) -> ctypes.c_void_p | ctypes.c_int | ctypes.c_float:
    if argument is None:
        return ctypes.c_void_p(0)
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_int(argument) if isinstance(argument, int) else ctypes.c_float(argument)


def _check(result: int) -> None:
    if result:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(result, ctypes.byref(text))
        raise RuntimeError(f"CUDA: {(text.value or b'error').decode()} ({result})")
