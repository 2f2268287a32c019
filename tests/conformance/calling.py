"""One way to write a call for both of the SDK's clients, the one that blocks and the one that is awaited."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from openai import AsyncOpenAI, OpenAI

Client = OpenAI | AsyncOpenAI


def client_of(kind: type[Client], base_url: str, api_key: str, **options: Any) -> Client:
    """A client that does not try again: a test wants to see the first answer."""
    return kind(base_url=f"{base_url}/v1", api_key=api_key, max_retries=0, timeout=120, **options)


async def got(value: Any) -> Any:
    """What the call returned."""
    return await value if inspect.isawaitable(value) else value


async def every(value: Any) -> list[Any]:
    """Everything that a stream, or a list in pages, brings."""
    if not hasattr(value, "__aiter__"):
        value = await got(value)
    if hasattr(value, "__aiter__"):
        return [each async for each in value]
    return list(value)


@asynccontextmanager
async def opened(manager: Any) -> AsyncIterator[Any]:
    """Enter a context manager of either kind."""
    if hasattr(manager, "__aenter__"):
        async with manager as value:
            yield value
    else:
        with manager as value:
            yield value


async def closed(client: Client) -> None:
    await got(client.close())
