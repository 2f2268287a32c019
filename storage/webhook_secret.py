"""The form of a webhook secret: `whsec_` and the base64 of 24 to 64 random bytes (Standard Webhooks 1.0).

Receivers disagree about anything looser: without the prefix the `openai` client takes the text itself as the
key where other libraries decode it, and missing padding is accepted by some and an error in others. So only
this form is taken.
"""

import base64
import binascii
from secrets import token_bytes

PREFIX = "whsec_"
KEY_BYTES = range(24, 65)


def new_secret() -> str:
    """Return a secret with a fresh 32-byte key."""
    return PREFIX + base64.b64encode(token_bytes(32)).decode()


def check_secret(secret: str) -> None:
    """Raise ValueError, in words for the caller who chose it, unless `secret` has the form above."""
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(PREFIX) or len(key) not in KEY_BYTES:
        # The secret itself stays out of the message: messages end up in logs.
        raise ValueError(
            f"a webhook secret is {PREFIX} followed by the base64 (with its padding) of "
            f"{KEY_BYTES.start} to {KEY_BYTES.stop - 1} bytes"
        )
