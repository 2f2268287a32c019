"""The kernels as Python calls them: through ctypes, which lets go of the GIL and costs about two microseconds a call.

The structures are those of `src/types.h` and `src/api.cpp`, field by field.
"""

import ctypes
import functools
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
from typing import cast

import numpy as np
import torch
from torch import Tensor

from worker.model.cpu.build import Unavailable, library_path

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
BLOCK = 32  # inputs that share one scale of the activations


class Packed(Structure):
    _fields_ = (
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("zeros", c_void_p),
        ("bias", c_void_p),
        ("in_features", c_int32),
        ("out_features", c_int32),
        ("group_size", c_int32),
        ("bits", c_int32),
    )


class Matrix(Structure):
    _fields_ = (("weight", c_void_p), ("in_features", c_int32), ("out_features", c_int32), ("dtype", c_int32))


class Layer(Structure):
    _fields_ = (
        ("ln_1", c_void_p),
        ("ln_2", c_void_p),
        ("c_attn", POINTER(Packed)),
        ("attn_c_proj", POINTER(Packed)),
        ("w1", POINTER(Packed)),
        ("w2", POINTER(Packed)),
        ("mlp_c_proj", POINTER(Packed)),
        ("eps", c_float),
    )


class Attention(Structure):
    """The attention of a step. Who makes one keeps what it points to."""

    _fields_ = (
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("places", c_void_p),
        ("rows", c_int32),
        ("attending", c_int32),
        ("heads", c_int32),
        ("head_dim", c_int32),
        ("block_size", c_int32),
        ("dtype", c_int32),
    )


PLACE = np.dtype([("slot", np.int64), ("blocks", np.uintp), ("length", np.int32)], align=True)
CHOICE = np.dtype([("temperature", np.float64), ("top_p", np.float64), ("top_k", np.int64)])

_SIGNATURES = {
    "qwenq_linear": (c_void_p, c_void_p, c_int32, c_int32, c_void_p, c_int32),
    "qwenq_dense": (c_void_p, c_void_p, c_int32, c_void_p, c_int32),
    "qwenq_before_attention": (c_void_p, c_void_p, c_int32, c_void_p, c_int32),
    "qwenq_after_attention": (c_void_p, c_void_p, c_void_p, c_int32, c_int32),
    "qwenq_attend": (c_void_p, c_int32, c_void_p, c_void_p, c_int32),
    "qwenq_layers": (c_void_p, c_int32, c_void_p, c_void_p, c_int32),
    "qwenq_candidates": (c_void_p, c_int64, c_void_p, c_int32, c_int32, *(c_void_p,) * 3, c_int32),
}


@functools.cache
def why_not() -> str | None:
    """Why there are no kernels on this machine; None when there are. The first call may build them."""
    try:
        load()
    except Unavailable as reason:
        return str(reason)
    return None


@functools.cache
def load() -> ctypes.CDLL:
    """The library with the best kernels for this CPU chosen. `Unavailable` when there is none."""
    path = library_path()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"cannot be loaded: {error}") from error
    library.qwenq_use.argtypes, library.qwenq_use.restype = (c_char_p,), c_char_p
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    if library.qwenq_use(None) is None:
        raise Unavailable("needs AVX2, FMA and F16C, which this CPU has not")
    return library


def use(instructions: str | None = None) -> str:
    """Choose `avx2` or `avx512-vnni` from now on, or the best there is. ValueError where it is missing."""
    name = cast("bytes | None", load().qwenq_use(instructions and instructions.encode()))
    if name is None:
        raise ValueError(f"this CPU has no {instructions}")
    return name.decode()


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
