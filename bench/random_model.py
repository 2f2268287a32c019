"""Random weights with the exact shapes of Qwen-1.8B-Chat, made in seconds, for machines without the real ones.

The model answers nonsense at the right speed: every tensor has the real one's type and size.
"""

import base64
import itertools
import json
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from worker.model import layout
from worker.model.config import load_config

CONFIG = {
    "model_type": "qwen",
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "kv_channels": 128,
    "intermediate_size": 11008,
    "vocab_size": 151936,
    "seq_length": 8192,
}
RANKS = 151643

Kind = Literal["int4", "int8", "bf16"]


def write(folder: Path, *, layers: int, kind: Kind = "int4") -> Path:
    """Write it into `folder`, unless it is there; `layers` 24 is the real size (1.9 GB in int4)."""
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | {"num_hidden_layers": layers}
    if kind != "bf16":
        bits = 4 if kind == "int4" else 8
        config["quantization_config"] = {"quant_method": "gptq", "bits": bits, "group_size": 128, "sym": True}
    (folder / "config.json").write_text(json.dumps(config))
    tokens = [bytes([value]) for value in range(256)]
    tokens += [
        bytes(three) for three in itertools.islice(itertools.product(range(256), repeat=3), RANKS - 256)
    ]
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
    (folder / "qwen.tiktoken").write_bytes(b"".join(lines))
    draw = torch.Generator().manual_seed(0)
    # One large draw, repeated: drawing 600 million numbers one by one takes longer than all the rest.
    noise = torch.randn(1 << 20, generator=draw).half()
    tensors = {}
    for name, _, shape, required in layout.expected_tensors(load_config(folder)):
        count = torch.Size(shape).numel()
        if name.endswith("qweight"):
            tensor = torch.randint(-(2**31), 2**31, shape, dtype=torch.int32, generator=draw)
        elif name.endswith("qzeros"):
            tensor = torch.full(shape, 0x77777777 if kind == "int4" else 0x7F7F7F7F, dtype=torch.int32)
        elif name.endswith("g_idx"):
            tensor = torch.arange(count, dtype=torch.int32) // 128
        elif name.endswith("scales"):
            tensor = torch.full(shape, (0.2 if kind == "int4" else 0.0125) * 2048**-0.5).half()
        elif "ln_" in name:
            tensor = torch.ones(shape).half()
        elif required:
            tensor = noise.repeat(-(-count // len(noise)))[:count].view(shape)
            tensor = tensor if "wte" in name else tensor * 2048**-0.5
        else:
            continue
        tensors[name] = (tensor.bfloat16() if kind == "bf16" else tensor).contiguous()
    partial = folder / "model.partial"
    save_file(tensors, partial)
    partial.rename(folder / "model.safetensors")  # at last: a folder with this file is complete
    return folder
