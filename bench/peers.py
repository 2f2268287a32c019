"""What others reach with this model on an H200, and what we set out to: tokens a second, of random weights.

Recorded once, each in its own program on one such card (docs/benchmarks.md): vLLM 0.26 int4 (Marlin), llama.cpp Q4_0,
and a plain prototype of one CUDA graph around torch's own operations.
"""

from typing import NamedTuple


class Peers(NamedTuple):
    """None where nobody has measured it."""

    vllm: float | None
    llama_cpp: float | None
    prototype: float | None
    to_reach: float | None


COLUMNS = ("vLLM", "llama.cpp", "prototype", "to reach")
NONE = Peers(None, None, None, None)

# By the rows, at a context of 512.
DECODE = {
    8: Peers(3805, 3029, 4360, 8000),
    32: Peers(11671, 5491, None, 18000),
    64: Peers(17096, 8026, 8199, 24000),
    256: Peers(26011, 11329, 9031, 32000),
}
# By the tokens generated from one.
GENERATE = {2048: Peers(537, 695, 887, 1400), 8191: Peers(507, 530, 649, 1000)}
# By the tokens of the prompt: recorded in milliseconds.
PREFILL = {
    2048: Peers(2048 / 0.0146, 2048 / 0.069, None, 2048 / 0.012),
    6144: Peers(6144 / 0.0364, None, None, 6144 / 0.035),
}
