"""The objects that the API shows, from their rows. Every key is always there, null where nothing is known."""

from __future__ import annotations

from collections.abc import Sequence

from storage.batch_models import Batch
from storage.crypto import SecretBox, SecretUnreadable
from storage.models import Conversation, File, Item, Json, Response, WebhookAttempt, WebhookEndpoint
from storage.webhook_deliveries import Delivery


def response(row: Response, output: Sequence[Item], queue: Json | None = None) -> Json:
    """Return the Response object; `output` is empty until its end, `queue` is its place while it waits.

    Sampling parameters that the request left out are null: the checkpoint's own defaults apply.
    """
    asked = row.request
    return {
        "id": row.id,
        "object": "response",
        "created_at": int(row.created_at),
        "completed_at": None if row.completed_at is None else int(row.completed_at),
        "status": row.status,
        "background": asked["background"],
        "model": asked["model"],
        "output": [item(each) for each in output],
        "error": row.error,
        "incomplete_details": None if row.incomplete_reason is None else {"reason": row.incomplete_reason},
        "usage": row.usage,
        "instructions": asked["instructions"],
        "conversation": None if row.conversation_id is None else {"id": row.conversation_id},
        "previous_response_id": row.previous_response_id,
        "metadata": asked["metadata"],
        "max_output_tokens": asked["max_output_tokens"],
        "temperature": asked["temperature"],
        "top_p": asked["top_p"],
        "presence_penalty": asked.get("presence_penalty") or 0.0,
        "frequency_penalty": asked.get("frequency_penalty") or 0.0,
        "top_logprobs": asked.get("top_logprobs") or 0,
        "text": asked.get("text", {"format": {"type": "text"}}),
        "truncation": asked["truncation"],
        "reasoning": None,
        "tools": asked.get("tools") or [],
        "tool_choice": asked.get("tool_choice") or "auto",
        "parallel_tool_calls": asked["parallel_tool_calls"],
        "max_tool_calls": asked.get("max_tool_calls"),  # absent from what older versions stored
        "store": row.stored,
        "service_tier": row.tier,
        "prompt_cache_key": asked["prompt_cache_key"],
        "prompt_cache_retention": asked["prompt_cache_retention"],
        "safety_identifier": asked["safety_identifier"],
        "user": asked["user"],
        "access_programs": None,
        "queue": queue,  # an extension
    }


def item(row: Item) -> Json:
    """Return a message of a response or a conversation."""
    return {"id": row.id, **row.body}


def conversation(row: Conversation) -> Json:
    """Return the Conversation object."""
    return {
        "id": row.id,
        "object": "conversation",
        "created_at": int(row.created_at),
        "metadata": row.meta,
    }


def file(row: File) -> Json:
    """Return the File object."""
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.size,
        "created_at": int(row.created_at),
        "expires_at": None if row.expires_at is None else int(row.expires_at),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
    }


def batch(row: Batch) -> Json:
    """Return the Batch object."""
    times = (
        "in_progress",
        "expires",
        "finalizing",
        "completed",
        "failed",
        "expired",
        "cancelling",
        "cancelled",
    )
    moments = {f"{name}_at": getattr(row, f"{name}_at") for name in times}
    return {
        "id": row.id,
        "object": "batch",
        "endpoint": row.endpoint,
        "model": row.model,
        "errors": {"object": "list", "data": row.errors} if row.errors else None,
        "input_file_id": row.input_file_id,
        "completion_window": row.completion_window,
        "status": row.status,
        "output_file_id": row.output_file_id,
        "error_file_id": row.error_file_id,
        "created_at": int(row.created_at),
        **{name: None if moment is None else int(moment) for name, moment in moments.items()},
        "request_counts": {"total": row.total, "completed": row.completed, "failed": row.failed},
        "usage": row.usage,
        "metadata": row.meta,
    }


def endpoint(row: WebhookEndpoint, secrets: SecretBox) -> Json:
    """Return the WebhookEndpoint object, without its secret. `enabled` and `disabled_reason` are extensions."""
    return {
        "id": row.id,
        "object": "webhook_endpoint",
        "created_at": int(row.created_at),
        "updated_at": int(row.updated_at),
        "name": row.name,
        "url": row.url,
        "event_types": row.event_types,
        "signing_secret_hint": _hint(row.secret, secrets),
        "enabled": row.enabled,
        "disabled_reason": row.disabled_reason,
    }


def delivery(found: Delivery) -> Json:
    """Return the WebhookDelivery object, an extension; its attempts are shown by the one that is retrieved."""
    row = found.row
    return {
        "id": row.id,
        "object": "webhook_delivery",
        "created_at": int(row.created_at),
        "finished_at": None if row.finished_at is None else int(row.finished_at),
        "status": row.status,
        "failure": row.failure,
        "webhook_id": row.event_id,
        "event_type": found.event.type,
        "subject": found.event.subject,
        "endpoint_id": row.endpoint_id,
        "url": row.url,
        "attempt_count": row.attempts,
        "next_attempt_at": None if row.next_attempt_at is None else int(row.next_attempt_at),
    }


def attempt(row: WebhookAttempt) -> Json:
    """Return one try of a delivery. `answer` is the beginning of what the receiver said."""
    return {
        "number": row.number,
        "started_at": row.started_at,
        "duration_ms": row.duration_ms,
        "status_code": row.status_code,
        "error": row.error,
        "answer": row.excerpt,
    }


def _hint(sealed: str, secrets: SecretBox) -> str | None:
    try:
        return f"whsec_...{secrets.open(sealed)[-4:]}"
    except SecretUnreadable:
        return None  # the key has changed: the endpoint can still be listed, and its secret rotated


def model(name: str) -> Json:
    """Return the Model object of the one model there is."""
    # The day Qwen-1.8B-Chat came out: the same in every process and after every restart.
    return {"id": name, "object": "model", "created": 1701302400, "owned_by": "qwenq", "shutdown_date": None}
