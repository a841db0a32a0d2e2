from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Self

class RedisSettings:
    @classmethod
    def from_dsn(cls, dsn: str) -> Self: ...

class ArqRedis:
    async def enqueue_job(
        self,
        function: str,
        *args: Any,
        _job_id: str | None = None,
        _defer_until: datetime | None = None,
        _defer_by: float | timedelta | None = None,
    ) -> Any: ...
    async def aclose(self) -> None: ...

async def create_pool(
    settings_: RedisSettings,
    *,
    job_serializer: Callable[[Any], bytes],
    job_deserializer: Callable[[bytes], Any],
    default_queue_name: str,
) -> ArqRedis: ...
