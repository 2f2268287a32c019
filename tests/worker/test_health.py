"""The worker's health page."""

from __future__ import annotations

import httpx

from worker.health import HealthServer


def test_it_says_what_is_wrong() -> None:
    fault: list[str] = []
    server = HealthServer(0, lambda: fault[0] if fault else None, lambda: b"", lambda _: True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client:
            assert client.get("/livez").status_code == 200
            fault.append("the engine has been silent for 99 s")
            sick = client.get("/livez")
            assert (sick.status_code, sick.json()["detail"]) == (503, fault[0])
            assert client.get("/other").status_code == 404
    finally:
        server.stop()
