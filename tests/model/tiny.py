"""Tiny random checkpoints in the real format: what `tiny_model` writes, the product loads as it loads Qwen.

The dense weights are computed here by GPTQ's formula from the codes, before anything is packed, so they are an
independent answer to what a reader must get back.
"""

import base64
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from worker.model import gptq

WORDS = ("system", "user", "assistant")


def tiny_model(folder: Path, **options: Any) -> Path:
    """Write the checkpoint `Tiny(**options)` into `folder` (made if needed) and return the folder."""
    return Tiny(**options).write(folder)


@dataclass(frozen=True)
class Tiny:
    """One checkpoint. The same values give the same bytes."""

    layers: int = 2
    hidden: int = 256
    head_dim: int = 64
    mlp: int = 384
    vocab_size: int = 512  # the rank file and the control tokens need 480
    context: int = 8192
    rope_base: float = 10000.0
    norm_eps: float = 1e-6
    bits: Literal[4, 8] | None = 4  # None: not quantised
    group_size: int = 64
    sym: bool = False
    act_order: bool = False
    dtype: torch.dtype = torch.float16  # of what is not packed
    c_attn_bias: bool = True  # False: stored, but zero, as in a converted Llama
    other_biases: Literal["absent", "zero", "random"] = "zero"
    shards: int = 1
    seed: int = 0

    @cached_property
    def stored(self) -> dict[str, Tensor]:
        """The tensors of the files, by name."""
        return self._tensors[0]

    @cached_property
    def dense(self) -> dict[str, Tensor]:
        """The same checkpoint unquantised, in fp32; linear weights `[out, in]`, absent biases absent."""
        return self._tensors[1]

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the linear layers of a block."""
        hidden, mlp = self.hidden, self.mlp
        return {
            "attn.c_attn": (hidden, 3 * hidden),
            "attn.c_proj": (hidden, hidden),
            "mlp.w1": (hidden, mlp),
            "mlp.w2": (hidden, mlp),
            "mlp.c_proj": (mlp, hidden),
        }

    def write(self, folder: Path) -> Path:
        """Write all files of the checkpoint into `folder` and return it."""
        folder.mkdir(parents=True, exist_ok=True)
        self._write_weights(folder)
        (folder / "qwen.tiktoken").write_bytes(rank_file(tiny_ranks()))
        for name, values in {
            "config.json": self.config(),
            "generation_config.json": self.generation_config(),
        }.items():
            (folder / name).write_text(json.dumps(values))
        return folder

    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        config: dict[str, Any] = {
            "architectures": ["QWenLMHeadModel"],
            "model_type": "qwen",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // self.head_dim,
            "kv_channels": self.head_dim,
            "intermediate_size": 2 * self.mlp,
            "vocab_size": self.vocab_size,
            "seq_length": self.context,
            "layer_norm_epsilon": self.norm_eps,
            "rotary_emb_base": self.rope_base,
            "no_bias": True,
            "tie_word_embeddings": False,
        }
        if self.bits is not None:
            config["quantization_config"] = {
                "quant_method": "gptq",
                "bits": self.bits,
                "group_size": self.group_size,
                "sym": self.sym,
                "desc_act": self.act_order,
            }
        return config

    def generation_config(self) -> dict[str, Any]:
        """The content of generation_config.json: Qwen's keys, greedy."""
        endoftext = len(tiny_ranks())
        return {
            "chat_format": "chatml",
            "eos_token_id": endoftext,
            "pad_token_id": endoftext,
            "max_window_size": 6144,
            "max_new_tokens": 512,
            "do_sample": False,
            "top_k": 0,
            "top_p": 0.8,
            "repetition_penalty": 1.0,
        }

    def _write_weights(self, folder: Path) -> None:
        if self.shards == 1:
            save_file(self.stored, folder / "model.safetensors")
            return
        names = sorted(self.stored)
        weight_map = {}
        for shard in range(self.shards):
            file = f"model-{shard + 1:05}-of-{self.shards:05}.safetensors"
            mine = names[shard :: self.shards]
            save_file({name: self.stored[name] for name in mine}, folder / file)
            weight_map |= dict.fromkeys(mine, file)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    @cached_property
    def _tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        stored: dict[str, Tensor] = {}
        dense: dict[str, Tensor] = {}

        def plain(name: str, *shape: int, mean: float = 0.0, deviation: float = 1.0) -> None:
            values = mean + deviation * torch.randn(*shape, generator=generator)
            stored[name] = values.to(self.dtype)
            dense[name] = stored[name].float()

        # Norm weights away from 1, biases away from 0: otherwise a swap or an omission would not show.
        plain("transformer.wte.weight", self.vocab_size, self.hidden)
        for layer in range(self.layers):
            block = f"transformer.h.{layer}"
            for norm in ("ln_1", "ln_2"):
                plain(f"{block}.{norm}.weight", self.hidden, mean=1.0, deviation=0.3)
            for kind, (inputs, outputs) in self.linears.items():
                name = f"{block}.{kind}"
                if self.bits is None:
                    plain(f"{name}.weight", outputs, inputs, deviation=inputs**-0.5)
                else:
                    packed, weight = self._quantised(inputs, outputs, generator)
                    stored |= {f"{name}.{part}": tensor for part, tensor in packed.items()}
                    dense[f"{name}.weight"] = weight
                biases = "random" if kind == "attn.c_attn" and self.c_attn_bias else self.other_biases
                if biases != "absent" or kind == "attn.c_attn":
                    plain(f"{name}.bias", outputs, deviation=0.5 if biases == "random" else 0.0)
        plain("transformer.ln_f.weight", self.hidden, mean=1.0, deviation=0.3)
        plain("lm_head.weight", self.vocab_size, self.hidden, deviation=2 * self.hidden**-0.5)
        return stored, dense

    def _quantised(
        self, inputs: int, outputs: int, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """(stored tensors, dense weight `[out, in]`) of one layer with random codes."""
        assert self.bits is not None
        levels, groups = 2**self.bits, -(-inputs // self.group_size)
        codes = torch.randint(0, levels, (inputs, outputs), generator=generator)
        zeros = torch.randint(1, levels + 1, (groups, outputs), generator=generator)
        if self.sym:
            zeros.fill_(levels // 2)
        # codes - zeros has a standard deviation of about 0.41 * levels: weights get one of about inputs**-0.5.
        scales = (0.5 + torch.rand(groups, outputs, generator=generator)) * 2.4 / levels * inputs**-0.5
        scales = scales.to(torch.float16)
        group = gptq.trivial_g_idx(inputs, self.group_size)
        if self.act_order:
            group = group[torch.randperm(inputs, generator=generator)]
        weight = scales.float()[group.long()] * (codes - zeros[group.long()])
        packed = {
            "qweight": gptq.pack_weight(codes, self.bits),
            "qzeros": gptq.pack_zeros(zeros, self.bits),
            "scales": scales,
            "g_idx": group,
        }
        return packed, weight.T.contiguous()


def tiny_ranks() -> list[bytes]:
    """The 256 single bytes, then merges that make one token of each role's name."""
    tokens = [bytes([value]) for value in range(256)]
    for word in WORDS:
        tokens += [word[:length].encode() for length in range(2, len(word) + 1)]
    return tokens


def rank_file(tokens: list[bytes]) -> bytes:
    """A rank file as tiktoken reads it."""
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
