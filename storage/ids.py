"""Identifiers: a prefix that says what it is and 24 bytes of randomness that nobody can guess."""

from __future__ import annotations

import secrets

# The prefix of an item's id by its type; all others are messages.
ITEMS = {"function_call": "fc", "function_call_output": "fco"}


def new(prefix: str) -> str:
    """Return e.g. ``resp_5f0c...`` (prefix, underscore, 48 hexadecimal digits)."""
    return f"{prefix}_{secrets.token_hex(24)}"
