"""One sequence through the model, with the plainest attention there is: every key and value in one tensor."""

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.model.qwen import QwenModel
from worker.model.rope import rotation


class Reader:
    """Reads a sequence in pieces; it remembers keys and values as fp32."""

    def __init__(self, model: QwenModel) -> None:
        self.model = model
        self.length = 0
        self._seen: dict[int, Tensor] = {}  # by layer: keys and values, [2, heads, length, head_dim]
        config = model.config
        self._rotation = rotation(config.context_length, config.head_dim, config.rope_base, model.device)

    def read(self, ids: Tensor) -> Tensor:
        """fp32 logits `[n, vocab]` after each of the next `ids`."""
        turns = self._rotation.at(torch.arange(self.length, self.length + len(ids)))
        heads = self.model.config.num_heads
        mask = torch.ones(len(ids), self.length + len(ids), dtype=torch.bool, device=ids.device)
        mask = mask.tril(self.length)

        def attend(layer: int, qkv: Tensor) -> Tensor:
            turned = turns.apply(qkv[:, : 2 * heads])
            new = torch.stack([turned[:, heads:], qkv[:, 2 * heads :].float()]).transpose(1, 2)
            seen = torch.cat([self._seen[layer], new], dim=2) if layer in self._seen else new
            self._seen[layer] = seen
            mixed = F.scaled_dot_product_attention(turned[:, :heads].transpose(0, 1), *seen, attn_mask=mask)
            return mixed.transpose(0, 1)

        logits = self.model.forward(ids, attend)
        self.length += len(ids)
        return logits
