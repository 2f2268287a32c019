"""The ASGI application. Settings are read when it starts, so that importing it needs none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware import Middleware

from api import (
    batches,
    chat_completions,
    completions,
    conversations,
    counting,
    files,
    health,
    metrics,
    models,
    responses,
    webhook_deliveries,
    webhook_endpoints,
)
from api.document import Application
from api.gate import Gate
from api.handlers import HANDLERS
from api.prompt_length import PromptLength
from api.services import Services
from api.settings import ApiSettings
from storage.settings import load


def create_app(settings: ApiSettings | None = None, prompt_length: PromptLength | None = None) -> FastAPI:
    """Return an application with these settings, or with those of the environment at its start.

    Args:
        prompt_length: counts the tokens of prompts; without it nobody does (`api.counting`).
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.services = services = Services.open(settings or load(ApiSettings), prompt_length)
        try:
            yield
        finally:
            await services.close()

    app = Application(
        title="qwenq",
        version=version("qwenq"),
        summary="Chat jobs on Qwen-1.8B-Chat, in OpenAI's wire format.",
        lifespan=lifespan,
        middleware=[Middleware(Gate)],
        exception_handlers=HANDLERS,
        docs_url=None,  # the pages that FastAPI brings load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    for part in (
        counting,
        responses,
        chat_completions,
        completions,
        conversations,
        files,
        batches,
        webhook_endpoints,
        webhook_deliveries,
        models,
        health,
        metrics,
    ):
        app.include_router(part.routes)
    return app


app = create_app()
