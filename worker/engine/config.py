"""What the engine process is told at its start, and what it says about itself once it is ready. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
Weights = Literal["int4", "dequantized"]
KVCacheFormat = Literal["auto", "int8"]
HeadBits = Literal[16, 8]
LayerCopies = Literal["auto", "never"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of one engine process.

    device           "auto" takes a GPU where one can be used, else the CPU.
    weights          "int4" keeps them packed in memory; "dequantized" trades memory for speed.
    threads          CPU threads of one forward pass; None leaves torch's own choice.
    max_running      requests that are stepped together; the others wait in order of arrival.
    step_tokens      most tokens computed in one step, of answers and prompts together; None: by the device.
    kv_cache_tokens  positions whose keys and values are kept; None: by the memory there is.
    kv_cache         "auto" is 16 bits, or 32 where a CPU has no kernels for 16; "int8" rounds to half of 16.
    attention        forces an attention backend by name; None takes the fastest that can serve.
    head_bits        16 is the head as the checkpoint has it; 8 reads half as much and rounds.
    layer_copies     "auto" on a GPU: keep the layers in 16 bits too, for steps of many rows, where memory is ample.
    deterministic    an answer's bits do not depend on what else runs; slower.
    """

    model_path: Path
    device: Device = "auto"
    weights: Weights = "int4"
    threads: int | None = None
    max_running: int = 64
    step_tokens: int | None = None
    kv_cache_tokens: int | None = None
    kv_cache: KVCacheFormat = "auto"
    attention: str | None = None
    head_bits: HeadBits = 16
    layer_copies: LayerCopies = "auto"
    deterministic: bool = False


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The engine that is running: its model's folder name, its device in words, and the kernels it chose."""

    model: str
    device: str
    backends: dict[str, str]
    context_length: int
    n_vocab: int
