"""The three headers of Standard Webhooks 1.0, as `client.webhooks.unwrap` and others verify them."""

from datetime import UTC, datetime

from standardwebhooks import Webhook


def headers(webhook_id: str, timestamp: float, body: bytes, secrets: list[str]) -> dict[str, str]:
    """Sign one try of a delivery with each of `secrets` (`whsec_...`; two while a rotation lasts).

    `webhook_id` stays the same over all tries: it is the receiver's key against duplicates. `timestamp` (unix
    seconds, cut to whole ones) is the try's own. `body` is signed as given, must be UTF-8 and go out unchanged.
    Raises ValueError when there is no secret: a delivery without a signature must not leave.
    """
    if not secrets:
        raise ValueError(f"webhook {webhook_id} has no secret to be signed with")
    sent_at = datetime.fromtimestamp(int(timestamp), UTC)
    text = body.decode()
    signatures = [Webhook(secret).sign(webhook_id, sent_at, text) for secret in secrets]
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(timestamp)),
        "webhook-signature": " ".join(signatures),
    }
