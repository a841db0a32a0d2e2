from datetime import datetime

class CronJob:
    name: str
    next_run: datetime | None
    def calculate_next(self, prev_run: datetime) -> None: ...
