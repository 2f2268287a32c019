"""One request on its way through the engine: its ids, its text so far, and where its keys and values are. No torch."""

import time
from array import array
from collections.abc import Callable

from worker.engine.blocks import BlockManager, Parent
from worker.engine.detokenizer import Detokenizer
from worker.engine.grammar import Matcher
from worker.engine.request import Finished, FinishReason, GenerationRequest, TokenLogprobs, Tokens

PENDING = -1  # stands for a token that a launched step chooses and that is not known here yet


class Sequence:
    """Prompt and answer of one request.

    ids        all tokens, prompt and answer; int64. The last `pending` of them are `PENDING`.
    blocks     of the KV cache, in order; position p is in blocks[p // size].
    computed   positions whose keys and values are in the cache.
    residence  how often it has begun anew with no blocks.
    published  of its blocks, how many others can find, and `parent` what the next of them follows.
    """

    def __init__(
        self,
        request: GenerationRequest,
        *,
        token_bytes: Callable[[int], bytes],
        capacity: int,
        grammar: Matcher | None = None,
        ids: "array[int] | None" = None,
    ) -> None:
        """`capacity`: the most tokens that prompt and answer may have together; `grammar` has the resumed ones.

        `ids`: those of the request as int64, where they have been packed already.
        """
        self.request = request
        self.grammar = grammar
        self.submitted = time.monotonic()
        self.ids = array("q", request.prompt_ids + request.resumed_ids) if ids is None else ids
        self.pending = 0
        self.plain = request.sampling.plain and grammar is None  # asked in every step
        self.cached_tokens: int | None = None  # of the prompt, when it was first admitted
        self._prompt_logprobs: list[TokenLogprobs | None] = [None]  # the first has nothing before it
        self._limit = min(request.sampling.max_new_tokens, capacity - len(request.prompt_ids))
        self._detokenizer = Detokenizer(token_bytes, request.sampling.stop_strings)
        for token_id in request.resumed_ids:
            self._detokenizer.push(token_id)
        self.residence = 0
        self.let_go()

    def let_go(self) -> None:
        """It has nothing in the cache (any more). Its tokens stay."""
        self.blocks: list[int] = []
        self.residence += 1
        self.computed = self.published = 0
        self.parent: Parent = self.request.cache_salt

    def hold(self, hit: list[int], manager: BlockManager) -> None:
        """Begin with blocks that hold its first tokens."""
        self.blocks = list(hit)
        self.published = len(hit)
        self.computed = len(hit) * manager.size
        if hit:
            self.parent = manager.name(hit[-1])
        if self.cached_tokens is None:
            self.cached_tokens = min(self.computed, len(self.request.prompt_ids))

    @property
    def missing(self) -> int:
        """Tokens to compute before the next can be chosen; 1 while the answer goes on token by token.

        0 when the token that is pending is the last there can be.
        """
        full = self.pending and len(self.ids) - len(self.request.prompt_ids) >= self._limit
        return 0 if full else len(self.ids) - self.computed

    @property
    def output_tokens(self) -> int:
        """Those that are known."""
        return len(self.ids) - self.pending - len(self.request.prompt_ids)

    @property
    def unscored(self) -> int | None:
        """Position of the first token of the prompt whose log-probability is asked for and not known yet."""
        if self.request.sampling.prompt_logprobs is None:
            return None
        known = len(self._prompt_logprobs)
        return known if known < len(self.request.prompt_ids) else None

    def score(self, first: int, logprobs: list[TokenLogprobs]) -> None:
        """Take the log-probabilities of the prompt's tokens from position `first` on."""
        known = len(self._prompt_logprobs)
        self._prompt_logprobs += logprobs[known - first :]

    @property
    def ended(self) -> FinishReason | None:
        """Why the tokens it has are all that there will be, if they are, and if all is known of its prompt."""
        if self.unscored is not None:
            return None
        if self._detokenizer.stopped or (self.grammar is not None and self.grammar.complete):
            return "stop"
        return "length" if self.output_tokens >= self._limit else None

    def expect(self) -> None:
        """A step that chooses the next token is launched."""
        self.ids.append(PENDING)
        self.pending += 1

    def append(self, token_id: int, logprobs: TokenLogprobs | None = None) -> Tokens:
        """The first token that was pending is this one."""
        event = Tokens(
            self.request.request_id,
            self.output_tokens,
            [token_id],
            [self._detokenizer.push(token_id)],
            None if logprobs is None else [logprobs],
        )
        self.ids[len(self.ids) - self.pending] = token_id
        self.pending -= 1
        if self.grammar is not None:
            self.grammar.accept(token_id)
        return event

    def finish(self, reason: FinishReason, stopped_by: tuple[int, TokenLogprobs] | None = None) -> Finished:
        """End the answer where it stands."""
        scored = self.request.sampling.prompt_logprobs is not None
        return Finished(
            request_id=self.request.request_id,
            reason=reason,
            tail=self._detokenizer.flush(),
            prompt_tokens=len(self.request.prompt_ids),
            cached_tokens=self.cached_tokens or 0,
            output_tokens=self.output_tokens,
            prompt_logprobs=self._prompt_logprobs if scored else None,
            stopped_by=stopped_by,
        )
