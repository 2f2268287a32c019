"""One log for every process: structlog over the standard library, one event a line.

Lines carry ids (`response_id`, `worker`, `attempt`), never message text, prompts or secrets.
"""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import Processor

from storage.settings import StorageSettings

# Libraries that log each request or each connection at INFO; their warnings stay.
QUIET = (
    "httpx",
    "httpcore",
    "alembic.runtime",
    "uvicorn.access",
    "celery.app.trace",
    "celery.worker.strategy",
    "celery.beat",  # a line for each sweep, one a second
)


def configure(service: str, settings: StorageSettings) -> None:
    """Send all logging of this process to stderr, each line marked with `service`."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        lambda _logger, _name, event: {**event, "service": service},
    ]
    renderers: list[Processor]
    if settings.log_format == "json":
        renderers = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        renderers = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                # The default, with rich installed, prints local variables: prompts and secrets among them.
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
