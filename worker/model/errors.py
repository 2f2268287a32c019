"""Errors of the model package.

Exception
├── CheckpointError   the checkpoint folder cannot be used as it is
├── BackendError      a kernel that was asked for cannot run here
└── PromptTooLong     the messages leave no room for an answer
"""


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message names the file, what is wrong with it and what to do."""


class BackendError(Exception):
    """A linear backend that was asked for by name cannot compute a layer; the message says why."""


class PromptTooLong(Exception):
    """The system text and the newest messages fill the context: nothing that may be dropped would help."""

    def __init__(self, prompt_tokens: int, context_length: int) -> None:
        super().__init__(
            f"The system text and the newest message take {prompt_tokens} tokens, "
            f"but prompt and answer together may have at most {context_length}. Send less text."
        )
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length
