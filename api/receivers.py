"""Receivers of webhooks as requests name them: their URLs are judged and their secrets sealed before storage."""

from __future__ import annotations

import anyio.to_thread

from api.errors import BadRequest
from api.schemas import Webhook
from api.services import Services
from storage.egress import UnsafeUrl, check_url
from storage.models import Json
from storage.webhooks import RESPONSE_EVENTS


async def check(url: str, param: str, services: Services) -> None:
    """Refuse a URL that webhooks may not go to.

    Raises:
        BadRequest: with the reason.
    """
    try:
        await anyio.to_thread.run_sync(check_url, url, services.egress, limiter=services.slow_calls)
    except UnsafeUrl as unsafe:
        raise BadRequest(
            f"Invalid '{param}': {unsafe.reason}.", param=param, code="invalid_webhook_url"
        ) from None


async def read(webhook: Webhook | None, services: Services) -> Json | None:
    """Return a request's `webhook` as it is stored, its secret sealed. An endpoint's id is not looked up here.

    Raises:
        BadRequest: neither a URL nor an endpoint is named, or both; the URL is unsafe; there is no secret.
    """
    if webhook is None:
        return None
    if (webhook.url is None) == (webhook.endpoint_id is None):
        raise BadRequest("Invalid 'webhook': give it either 'url' or 'endpoint_id'.", param="webhook")
    if webhook.url is None:
        for name in ("secret", "events"):
            if getattr(webhook, name) is not None:
                raise BadRequest(
                    f"Invalid 'webhook.{name}': a registered endpoint has its own.", param=f"webhook.{name}"
                )
        return {"endpoint_id": webhook.endpoint_id}
    await check(webhook.url, "webhook.url", services)
    secret = webhook.secret or _own_secret(services)
    return {
        "url": webhook.url,
        "secret": services.secrets.seal(secret),
        "events": webhook.events or list(RESPONSE_EVENTS),
    }


def _own_secret(services: Services) -> str:
    secret = services.settings.webhook_secret
    if secret is None:
        raise BadRequest(
            "Missing required parameter: 'webhook.secret'. This service has no signing secret of its own.",
            param="webhook.secret",
            code="missing_required_parameter",
        )
    return secret.get_secret_value()
