"""The workloads by name."""

from __future__ import annotations

from types import ModuleType

from benchmarks.workloads import (
    growth,
    w01_chains,
    w02_one_step,
    w03_fans,
    w04_real_work,
    w05_payloads,
    w06_parked,
    w07_streams,
    w08_store,
    w09_starts,
    w10_footprint,
)

WORKLOADS: dict[str, ModuleType] = {
    "W1": w01_chains,
    "W2": w02_one_step,
    "W3": w03_fans,
    "W4": w04_real_work,
    "W5": w05_payloads,
    "W6": w06_parked,
    "W7": w07_streams,
    "W8": w08_store,
    "W9": w09_starts,
    "W10": w10_footprint,
    "growth": growth,
}
