# The part of arq that stepfleet uses: arq pins a redis-py that the checked environment does not have.
from collections.abc import Callable
from typing import Any

from arq.connections import create_pool as create_pool
from arq.cron import CronJob

class Retry(RuntimeError):
    def __init__(self, defer: float | None = None) -> None: ...

def func(coroutine: Callable[..., Any], *, timeout: float, max_tries: int) -> Any: ...
def cron(coroutine: Callable[..., Any], *, name: str, **keywords: Any) -> CronJob: ...
