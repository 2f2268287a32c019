"""The exceptions of the engine, as its callers see them.

EngineError
├── EngineStartError   the process could not load the model; the message says why
└── EngineDied         the process ended while a request was open: submit it again with `resumed_ids`
"""


class EngineError(Exception):
    """Something about the engine process, not about one request (those end in a `Failed` event)."""


class EngineStartError(EngineError):
    """The engine cannot start as it is configured. Trying again without a change will not help."""


class EngineDied(EngineError):
    """The engine process ended, or was ended, before the request did."""
