"""Lists as OpenAI's API shows them: a page of objects, its first and last id, and whether more follow."""

from __future__ import annotations

from collections.abc import Sequence

from storage.models import Json


def page(shown: Sequence[Json], limit: int) -> Json:
    """Return the list object of the first `limit` of `shown`, of which one more was fetched if there is one.

    The ids of an empty page are empty strings: the SDK's types of item lists know no null there.
    """
    data = list(shown[:limit])
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else "",
        "last_id": data[-1]["id"] if data else "",
        "has_more": len(shown) > limit,
    }
