"""What a `Context` had in older releases: `get` and `set`, `data`, and access by key.

`data` is a plain dictionary, so nothing can be awaited when it is used: a step that is marked with
`pass_context=True`, as those releases asked for, gets the state before it starts and has its
changes written when it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

from stepfleet.deprecation import warn_once
from stepfleet.errors import ContextStateError
from stepfleet.store import LoadedState, StateStore

_MISSING: Final = object()


class OldForms:
    """Old names of what `ctx.store` does."""

    _loaded: LoadedState | None = None

    @property
    def store(self) -> StateStore[Any]:
        """The state of the run."""
        raise NotImplementedError

    def get(self, key: str, default: Any = _MISSING) -> Coroutine[Any, Any, Any]:
        """Return a value of the state; the old name of `ctx.store.get`.

        Raises:
            ValueError: nothing is there and no default was given.
        """
        warn_once("ctx.get", "ctx.store.get")
        return self.store.get(key) if default is _MISSING else self.store.get(key, default)

    def set(self, key: str, value: Any) -> Coroutine[Any, Any, None]:
        """Set a value of the state; the old name of `ctx.store.set`."""
        warn_once("ctx.set", "ctx.store.set")
        return self._set(key, value)

    async def _set(self, key: str, value: Any) -> None:
        await self.store.set(key, value)
        if self._loaded is not None:
            await self._loaded.refresh(key.partition(".")[0])

    @property
    def data(self) -> dict[str, Any]:
        """The state as a dictionary; its changes are written when the step ends.

        Raises:
            ContextStateError: the step is not marked with `pass_context=True`.
        """
        warn_once("ctx.data", "await ctx.store.get() and await ctx.store.set()")
        return self._data()

    def __getitem__(self, key: str) -> Any:
        warn_once('ctx["key"]', "await ctx.store.get()")
        return self._data()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        warn_once('ctx["key"] = value', "await ctx.store.set()")
        self._data()[key] = value

    def _data(self) -> dict[str, Any]:
        if self._loaded is None:
            raise ContextStateError(
                "ctx.data and ctx[...] need the state before the step starts: mark the step with "
                "@step(pass_context=True), or better, use await ctx.store.get() and "
                "await ctx.store.set()."
            )
        return self._loaded.values


@asynccontextmanager
async def data_of(context: OldForms) -> AsyncGenerator[None]:
    """Load the state for the code inside the block, and write at its end what it changed.

    As every write to the store, it stays when the code fails.
    """
    loaded = context._loaded = await context.store.load()  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    except asyncio.CancelledError:
        raise
    except BaseException:
        await loaded.save()
        raise
    else:
        await loaded.save()
