"""Webhook secrets at rest: encrypted with the key from the settings (Fernet: AES-128-CBC with HMAC-SHA256)."""

from __future__ import annotations

from cryptography.fernet import Fernet, InvalidToken


class SecretUnreadable(Exception):
    """A stored secret was not encrypted with this key: QWENQ_SECRET_KEY has changed."""


class SecretBox:
    """Encrypts and decrypts short secrets. Thread-safe."""

    def __init__(self, key: str) -> None:
        self._fernet = Fernet(key)

    def seal(self, secret: str) -> str:
        """Return `secret` encrypted, as ASCII text for a column."""
        return self._fernet.encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        """Return what `seal` was given.

        Raises:
            SecretUnreadable: it was sealed with another key.
        """
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken:
            raise SecretUnreadable(
                "a stored webhook secret cannot be decrypted: QWENQ_SECRET_KEY is not the key it was stored with"
            ) from None
