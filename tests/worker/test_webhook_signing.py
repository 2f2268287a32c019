"""Our signatures against two verifiers that we did not write, and one published vector."""

import json
import time

import openai
import pytest
from openai import InvalidWebhookSignatureError
from openai.types.webhooks import ResponseCompletedWebhookEvent
from standardwebhooks import Webhook, WebhookVerificationError

from storage.webhook_secret import new_secret
from worker.webhook_signing import headers

BODY = json.dumps(
    {
        "id": "evt_1",
        "object": "event",
        "created_at": 1_760_000_000,
        "type": "response.completed",
        "data": {"id": "resp_1", "metadata": {"name": "你好 \N{WAVING HAND SIGN}"}},
    },
    ensure_ascii=False,
).encode()


def unwrap(body: bytes, signed: dict[str, str], secret: str) -> object:
    return openai.OpenAI(api_key="unused", webhook_secret=secret).webhooks.unwrap(body.decode(), signed)


def test_the_published_vector_of_the_specification_holds():
    signed = headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330.9,
        b'{"test": 2432232314}',
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )
    assert signed == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_the_openai_client_and_standardwebhooks_accept_what_we_sign():
    secret = new_secret()
    signed = headers("wh_1", time.time(), BODY, [secret])
    event = unwrap(BODY, signed, secret)
    assert isinstance(event, ResponseCompletedWebhookEvent)
    assert event.data.id == "resp_1"
    assert Webhook(secret).verify(BODY, signed) == json.loads(BODY)


def test_during_a_rotation_either_secret_verifies_and_no_other():
    old, new, other = new_secret(), new_secret(), new_secret()
    signed = headers("wh_1", time.time(), BODY, [new, old])
    for secret in (old, new):
        unwrap(BODY, signed, secret)
        Webhook(secret).verify(BODY, signed)
    with pytest.raises(InvalidWebhookSignatureError):
        unwrap(BODY, signed, other)
    with pytest.raises(WebhookVerificationError):
        Webhook(other).verify(BODY, signed)


@pytest.mark.parametrize("changed", ["body", "webhook-id", "webhook-timestamp"])
def test_nothing_signed_can_be_changed(changed):
    secret = new_secret()
    now = time.time()
    signed = headers("wh_1", now, BODY, [secret])
    body = BODY
    if changed == "body":
        body = BODY.replace(b"resp_1", b"resp_2")
    else:
        signed[changed] = {"webhook-id": "wh_2", "webhook-timestamp": str(int(now) + 1)}[changed]
    with pytest.raises(InvalidWebhookSignatureError):
        unwrap(body, signed, secret)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body, signed)


def test_each_try_is_signed_anew_under_the_same_id():
    secret = new_secret()
    first, second = (headers("wh_1", moment, BODY, [secret]) for moment in (1_760_000_000, 1_760_000_300))
    assert first["webhook-id"] == second["webhook-id"]
    assert first["webhook-signature"] != second["webhook-signature"]


def test_a_delivery_without_a_secret_is_an_error():
    with pytest.raises(ValueError, match="wh_1 has no secret"):
        headers("wh_1", time.time(), BODY, [])
