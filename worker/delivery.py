"""One try of one webhook: claim, sign, send, classify, record.

A try counts as delivered on any 2xx. A redirect, another status, no answer in time or a refused address is a
failure and is tried again on the schedule, except after 410: the receiver has said that it is gone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import structlog

from storage import webhook_tries
from storage.crypto import SecretUnreadable
from storage.webhook_tries import DeliveryJob, Try
from worker import webhook_http, webhook_signing
from worker.runtime import Runtime
from worker.webhook_http import Attempt

log = structlog.get_logger(__name__)

# A receiver may ask for more time with Retry-After, within reason.
RETRY_AFTER_LIMIT = 24 * 3600.0
# Two endpoints that went down together are not tried at the same moment for ever.
JITTER = 0.1
# Beyond the request's own deadline, a worker has this long to record what came of it.
RECORD_SECONDS = 30.0


def deliver(runtime: Runtime, delivery_id: str) -> None:
    """Make the delivery's next try if it is due, nobody else is at it and its receiver is not too busy."""
    timeout = runtime.settings.webhook_timeout
    with runtime.database.begin() as session:
        job = webhook_tries.claim_delivery(
            session,
            delivery_id,
            timeout + RECORD_SECONDS,
            limit=runtime.settings.webhook_receiver_limit,
        )
    if job is None:
        return
    outcome = _judge(job, _send(runtime, job, timeout), runtime.settings.webhook_retry_delays)
    with runtime.database.begin() as session:
        webhook_tries.record(session, job, outcome)
    log.info(
        "webhook delivered" if outcome.delivered else "webhook failed",
        delivery_id=job.id,
        event_id=job.event_id,
        number=job.number,
        status_code=outcome.status_code,
        error=outcome.error,
        duration_ms=outcome.duration_ms,
        retry_in=outcome.retry_in,
    )


def _send(runtime: Runtime, job: DeliveryJob, timeout: float) -> Attempt:
    try:
        secrets = [runtime.secrets.open(sealed) for sealed in job.secrets]
    except SecretUnreadable as unreadable:
        return Attempt(status=None, error=str(unreadable), duration_ms=0, excerpt="", retry_after=None)
    headers = webhook_signing.headers(job.event_id, job.claimed_at, job.body, secrets)
    return webhook_http.post(
        job.url, body=job.body, headers=headers, policy=runtime.egress, deadline_seconds=timeout
    )


def _judge(job: DeliveryJob, attempt: Attempt, delays: Sequence[float]) -> Try:
    gone = attempt.status == 410
    retry_in = None
    if not attempt.delivered and not gone and job.round <= len(delays):
        retry_in = delays[job.round - 1] * random.uniform(1 - JITTER, 1 + JITTER)
        if attempt.retry_after is not None:
            retry_in = max(retry_in, min(attempt.retry_after, RETRY_AFTER_LIMIT))
    return Try(
        delivered=attempt.delivered,
        status_code=attempt.status,
        error=attempt.error,
        excerpt=attempt.excerpt,
        duration_ms=attempt.duration_ms,
        retry_in=retry_in,
        gone=gone,
    )
