"""/v1/models: the one model that is served."""

from __future__ import annotations

from starlette.responses import JSONResponse

from api import objects, route, submission
from api.services import Held

routes = route.router("models")


@routes.get("/models")
async def list_models(services: Held) -> JSONResponse:
    """List the served model."""
    return JSONResponse({"object": "list", "data": [objects.model(services.settings.model_name)]})


@routes.get("/models/{name:path}")
async def retrieve(services: Held, name: str) -> JSONResponse:
    """Show the served model, by its name or as `default`. Names may hold slashes."""
    submission.check_model(name, services.settings)
    return JSONResponse(objects.model(services.settings.model_name))
