"""An attention backend for steps of fixed shapes on a CPU: it does what the items say, with torch's own attention."""

from torch import Tensor

from worker.engine.attention import GatheredAnswers, _one, _store
from worker.engine.batch import Span
from worker.engine.gpu.prompts import Pieces
from worker.engine.kv_cache import KVCache
from worker.model.rope import Rotation


class TorchPieces(GatheredAnswers):
    """Rows that no item has are NaN, so that nobody can live on them."""

    name = "torch-pieces"

    def pieces(self, qkv: Tensor, layer: int, cache: KVCache, pieces: Pieces, rotation: Rotation) -> Tensor:
        queries = _store(qkv, layer, cache, pieces.slots.long(), rotation)
        mixed = queries.new_full(queries.shape, float("nan"))
        parts: dict[int, list[int]] = {}
        for first, rows, start, table, part, count, _, _ in pieces.items.tolist():
            assert rows <= pieces.tile.rows
            if rows:
                parts.setdefault(first, list(range(count))).remove(part)
                blocks = pieces.tables[table, : -(-(start + rows) // cache.block_size)].long()
                span = Span(first, rows, start, blocks, None)
                seen, mine = cache.read(layer, blocks, None, span.length), slice(first, first + rows)
                mixed[mine] = _one(queries[mine], seen, span)
        assert not any(parts.values())  # every part of a tile once
        return mixed

    def whole(self, qkv: Tensor, layer: int, cache: KVCache, slots: Tensor, rotation: Rotation) -> Tensor:
        queries = _store(qkv, layer, cache, slots.long(), rotation)
        heads = queries.shape[1]
        kept = rotation.apply(qkv[:, heads : 2 * heads]), qkv[:, 2 * heads :].float()
        seen = qkv.new_empty(2, *queries.shape)
        seen[0], seen[1] = kept
        return _one(queries, seen, Span(0, len(qkv), 0, slots, None))

    def serves_whole(self, rows: int, cache: KVCache) -> bool:
        return True
