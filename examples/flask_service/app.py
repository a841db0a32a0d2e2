"""A service without an event loop: orders, what they ask, and the answers.

flask --app examples.flask_service.app run
"""

from __future__ import annotations

from typing import Any

from flask import Flask, request

from examples.human_in_the_loop.workflow import Approval, ApprovalNeeded, OrderFlow
from stepfleet import SyncClient
from stepfleet.errors import RunNotFound

app = Flask(__name__)
#: One for the process: every thread of the server uses it, and each child of one that forks its own.
fleet = SyncClient()


@app.post("/orders")
def place() -> tuple[dict[str, Any], int]:
    body = request.get_json()
    handler = fleet.start(OrderFlow, run_id=body.get("id"), item=body["item"], price=body["price"])
    # The first public event is a question, or the end.
    event = next(handler.stream_events())
    if isinstance(event, ApprovalNeeded):
        return {"order": handler.run_id, "question": event.question}, 202
    return {"order": handler.run_id, "result": handler.result()}, 200


@app.get("/orders/<run_id>")
def look(run_id: str) -> dict[str, Any]:
    found = fleet.handler(run_id).status()
    return {"order": run_id, "status": found.status, "error": found.error}


@app.post("/orders/<run_id>/answer")
def answer(run_id: str) -> dict[str, Any]:
    handler = fleet.handler(run_id, workflow=OrderFlow)
    handler.send_event(Approval(granted=request.get_json()["granted"]))
    return {"order": run_id, "result": handler.result(timeout=30)}


@app.delete("/orders/<run_id>")
def cancel(run_id: str) -> dict[str, Any]:
    handler = fleet.handler(run_id)
    handler.cancel_run()
    return {"order": run_id, "status": handler.status().status}


@app.errorhandler(RunNotFound)
def not_found(error: RunNotFound) -> tuple[dict[str, Any], int]:
    return {"error": str(error)}, 404
