"""The Qwen-1 decoder, from token ids to logits.

    h = wte[ids]
    h = h + attn(ln_1(h));  h = h + mlp(ln_2(h))      for every block
    logits = lm_head(ln_f(h))

Attention is causal with rotary positions, the MLP is c_proj(w1(x) * silu(w2(x))): w2 is the gate. There is no dynamic
NTK and no logn scaling, because both change nothing up to `config.context_length`, where this model stops.

Precision: residual stream, norms, rotation and softmax are fp32; linear layers compute in `dtype`. The head computes
in fp32 where `dtype` is fp32, else in fp16: its products are summed in fp32 and rounded once to 11 bits, where bf16
would round a logit of 24 to a multiple of 1/8 and make ties that are none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.model.config import QwenConfig
from worker.model.linear import Linear

# (layer, queries | keys | values as c_attn gives them, `[n, 3 * heads, head_dim]`) -> `[n, heads, head_dim]`.
# It knows which sequence and position every row belongs to, turns queries and keys, and keeps what was before.
Attend = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Block:
    """Weights of one layer. Norms are fp32 `[hidden]`."""

    ln_1: Tensor
    c_attn: Linear  # hidden -> queries | keys | values, each of all heads
    attn_c_proj: Linear
    ln_2: Tensor
    w1: Linear
    w2: Linear
    mlp_c_proj: Linear


@dataclass(frozen=True, slots=True)
class QwenModel:
    """A loaded model. It keeps nothing between calls: keys and values of earlier positions are `Attend`'s.

    wte `[vocab, hidden]` in any dtype; lm_head hidden -> vocab, in `head_dtype`; `dtype` of the linear layers;
    `backends`: the kernel of every kind of layer.
    """

    config: QwenConfig
    wte: Tensor
    blocks: Sequence[Block]
    ln_f: Tensor
    lm_head: Linear
    dtype: torch.dtype
    backends: dict[str, str]

    @property
    def device(self) -> torch.device:
        return self.wte.device

    @property
    def head_dtype(self) -> torch.dtype:
        return torch.float32 if self.dtype == torch.float32 else torch.float16

    @torch.inference_mode()
    def forward(self, ids: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """fp32 logits `[n, vocab]` after each of `ids` (int64 `[n]`), or of `rows` (int64) among them alone."""
        hidden = self.hidden(ids, attend)
        return self.logits(hidden if rows is None else hidden[rows])

    @torch.inference_mode()
    def hidden(self, ids: Tensor, attend: Attend) -> Tensor:
        """The residual stream behind the last block, fp32 `[n, hidden]`, after each of `ids` (int64 `[n]`)."""
        hidden = F.embedding(ids.to(self.device), self.wte).to(torch.float32)
        heads = (3 * self.config.num_heads, self.config.head_dim)
        for layer, block in enumerate(self.blocks):
            qkv = block.c_attn(self._norm(hidden, block.ln_1)).view(len(ids), *heads)
            hidden += block.attn_c_proj(attend(layer, qkv).flatten(1).to(self.dtype))
            hidden += _mlp(block, self._norm(hidden, block.ln_2))
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits `[n, vocab]` from rows of `hidden`."""
        return self.head(hidden).to(torch.float32)

    def head(self, hidden: Tensor) -> Tensor:
        """The same in the precision that the head gives them."""
        normed = F.rms_norm(hidden, (self.config.hidden_size,), self.ln_f, self.config.norm_eps)
        return self.lm_head(normed.to(self.head_dtype))

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(hidden, (self.config.hidden_size,), weight, self.config.norm_eps).to(self.dtype)


def _mlp(block: Block, x: Tensor) -> Tensor:
    return block.mlp_c_proj(F.silu(block.w2(x)) * block.w1(x))
