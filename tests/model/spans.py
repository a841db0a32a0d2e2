"""What listens to spans of llama_index_instrumentation: in the test process, and in each worker process."""

from __future__ import annotations

import inspect
from typing import Any

from llama_index_instrumentation.span import BaseSpan
from llama_index_instrumentation.span_handlers import BaseSpanHandler
from pydantic import PrivateAttr


class Recorder(BaseSpanHandler[BaseSpan]):
    """Keeps the parent of every span, and how spans ended."""

    _parents: dict[str, str | None] = PrivateAttr(default_factory=dict)
    _exited: list[str] = PrivateAttr(default_factory=list)
    _dropped: dict[str, BaseException | None] = PrivateAttr(default_factory=dict)

    @classmethod
    def class_name(cls) -> str:
        return "Recorder"

    def parent_of(self, span: str | None) -> str | None:
        return self._parents[span or ""]

    def has_exited(self, span: str) -> bool:
        return span in self._exited

    def exits_of(self, name: str) -> int:
        return sum(span.startswith(f"{name}-") for span in self._exited)

    def drops_of(self, name: str) -> list[str]:
        return [repr(e) for span, e in self._dropped.items() if span.startswith(f"{name}-")]

    def new_span(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any = None,
        parent_span_id: str | None = None,
        tags: dict[str, Any] | None = None,
        **_: Any,
    ) -> BaseSpan:
        self._parents[id_] = parent_span_id
        return BaseSpan(id_=id_, parent_id=parent_span_id, tags=tags or {})

    def prepare_to_exit_span(
        self, id_: str, bound_args: Any, instance: Any = None, result: Any = None, **_: Any
    ) -> BaseSpan | None:
        self._exited.append(id_)
        return self.open_spans.get(id_)

    def prepare_to_drop_span(
        self,
        id_: str,
        bound_args: Any,
        instance: Any = None,
        err: BaseException | None = None,
        **_: Any,
    ) -> BaseSpan | None:
        self._dropped[id_] = err
        return self.open_spans.get(id_)


#: That of this process.
RECORDER = Recorder()
