"""The one form of secret that all receivers read alike."""

import base64

import pytest

from storage.webhook_secret import check_secret, new_secret


def encoded(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


def test_new_secrets_have_the_form_and_differ():
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    for secret in made:
        check_secret(secret)


@pytest.mark.parametrize("length", [24, 32, 64])
def test_keys_of_24_to_64_bytes_pass(length):
    check_secret(encoded(b"\xff" * length))


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        "hunter2hunter2hunter2hunter2",
        base64.b64encode(bytes(32)).decode(),
        encoded(bytes(23)),
        encoded(bytes(65)),
        encoded(bytes(32)).rstrip("="),
        encoded(bytes(32)) + "\n",
        "whsec_" + base64.urlsafe_b64encode(b"\xff" * 32).decode(),
        "whsec_" + "ü" * 32,
        "WHSEC_" + base64.b64encode(bytes(32)).decode(),
    ],
)
def test_anything_else_is_refused_without_repeating_it(secret):
    with pytest.raises(ValueError, match="24 to 64 bytes") as refused:
        check_secret(secret)
    assert not secret or secret == "whsec_" or secret not in str(refused.value)
