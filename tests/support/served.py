"""The workflows of the example services, for one worker."""

from __future__ import annotations

from examples.fastapi_service.report import ReportFlow
from examples.human_in_the_loop.workflow import OrderFlow

FLOWS = {"ReportFlow": ReportFlow, "OrderFlow": OrderFlow}
