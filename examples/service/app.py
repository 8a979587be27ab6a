"""A web service with a hal session inside: JSON in, JSON out, and it goes on when a device is lost.

pip install -r examples/service/requirements.txt
HAL_MODEL=demo:digits uvicorn --factory examples.service.app:service

curl -d '{"inputs": {"image": [[[[0, 0, 0, 0, 0, 0, 0, 0], ...]]]}}' localhost:8000/run
curl localhost:8000/health
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

import hal
from hal.errors import HalError, InputError, RequestTimeout

#: Seconds after which a request is given up: a device that hangs costs one answer, not the service.
DEADLINE_S = 30.0


class Request(BaseModel):
    """One run: nested lists by the model's input names."""

    inputs: dict[str, Any]


def from_environment() -> hal.Session:
    """The session of the model that HAL_MODEL names. The first start measures; later ones find it stored."""
    return hal.compile(os.environ.get("HAL_MODEL", "demo:digits"), deadline_s=DEADLINE_S)


def service(make: Callable[[], hal.Session] = from_environment) -> FastAPI:
    """The application.

    Args:
        make: Makes the session, in a thread, when the service starts.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        app.state.session = await asyncio.to_thread(make)
        yield
        # Waits for the requests under way.
        await asyncio.to_thread(app.state.session.close)

    app = FastAPI(title="hal service", lifespan=life)

    @app.post("/run")
    async def run(request: Request) -> dict[str, Any]:
        session: hal.Session = app.state.session
        specs = {spec.name: spec for spec in session.signature.inputs}
        try:
            feeds = {
                name: np.asarray(value, specs[name].dtype if name in specs else None)
                for name, value in request.inputs.items()
            }
            # Other requests go on meanwhile; as many run at once as keep the devices busy.
            outputs = await asyncio.wrap_future(session.submit(feeds))
        except (InputError, ValueError, TypeError) as error:
            raise HTTPException(422, str(error)) from error
        except RequestTimeout as error:
            raise HTTPException(504, str(error)) from error
        except HalError as error:
            raise HTTPException(503, str(error)) from error
        answers = outputs if isinstance(outputs, tuple) else (outputs,)
        names = [spec.name for spec in session.signature.outputs]
        return {"outputs": {name: np.asarray(one).tolist() for name, one in zip(names, answers, strict=True)}}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        session: hal.Session = app.state.session
        return {
            "model": session.graph.name,
            "targets": list(session.plan.targets),
            "events": [{"at": event.at, "kind": event.kind, "text": event.text} for event in session.events],
        }

    return app
