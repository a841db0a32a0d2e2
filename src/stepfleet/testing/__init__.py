"""What tests of workflows use; `stepfleet.testing.plugin` has the fixtures for pytest."""

from stepfleet.testing.runner import WorkflowTestResult, WorkflowTestRunner
from stepfleet.testing.virtual_time import NothingLeft, run_in_virtual_time

__all__ = ["NothingLeft", "WorkflowTestResult", "WorkflowTestRunner", "run_in_virtual_time"]
