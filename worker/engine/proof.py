"""Whether a launch that does many others' work does it right on this machine, found out before anybody is answered."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from worker.engine.attention import DecodeAttention
from worker.engine.kv_cache import KVCache
from worker.model.qwen import QwenModel
from worker.model.rope import Rotation

# More pages than a head of `int4_stack.cu` has blocks, and one that is not full.
TOKENS = 150
# What fp16 between the layers may make; the tests of the kernels allow as much. An H200 finds 0.0002 on random weights
# of Qwen-1.8B's shapes.
LIMIT = 0.01

# The token, the cache's layers, the row's table of blocks, its position and rotation: as `Int4Stack` says.
OneLaunch = Callable[[Tensor, Sequence[Tensor], Tensor, Tensor, Rotation], Tensor]


@torch.inference_mode()
def deviation(
    one_launch: OneLaunch, model: QwenModel, decode: DecodeAttention, cache: KVCache, rotation: Rotation
) -> float:
    """The most by which a token's logits differ from those of many launches, as a part of their length.

    Not a number where that is what it has computed. Each writes and reads keys and values of its own, in pages that do
    not lie in order: what is kept wrongly, or not at all, shows at the next token. Overwrites blocks of the cache.
    """
    size, device = cache.block_size, model.device
    count = min(TOKENS, cache.blocks // 2 * size, len(rotation.cos))
    pages = torch.arange(-(-count // size), dtype=torch.int32, device=device)[None]
    mine, theirs = pages.flip(1).contiguous(), pages + pages.shape[1]
    ids = torch.arange(count, device=device) * 7919 % model.config.vocab_size
    found = []
    for place in range(count):
        token, position = ids[place : place + 1].clone(), torch.tensor([place], device=device)
        turns = rotation.at(position)

        def attend(layer: int, qkv: Tensor, at: Tensor = position, turns: Rotation = turns) -> Tensor:
            return decode.decode(qkv, layer, cache, theirs, at, turns)

        many = model.logits(model.hidden(token, attend))
        one = model.logits(one_launch(token, cache.layers, mine, position, turns))
        found.append((one - many).norm() / many.norm())
    return float(torch.stack(found).max())
