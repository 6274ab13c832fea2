"""What the API asks of the local stores."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

from app.model import Lines


class EventPage(Protocol):
    """A page of history."""

    @property
    def events(self) -> Sequence[object]:
        """Newest first; structs that are encoded as they are."""
        ...

    @property
    def next_cursor(self) -> str | None:
        """Where the next page begins; None after the last."""
        ...


class EventStore(Protocol):
    """Events of the past."""

    async def events(
        self,
        *,
        entity_id: str | None,
        start_ns: int | None,
        end_ns: int | None,
        domain: str | None,
        area_id: str | None,
        limit: int,
        cursor: str | None,
    ) -> EventPage:
        """Return the newest events that fit; None means any.

        Raises:
            ValueError: the cursor is not one of the store's.
            StorageError: the store cannot be read.
        """
        ...


class RefusedPoint(Protocol):
    """One dead letter."""

    @property
    def id(self) -> int:
        """Grows with the order in which points were put aside."""
        ...

    @property
    def sink(self) -> str:
        """Who refused it."""
        ...

    @property
    def sequence(self) -> int:
        """Its number in the journal when it was refused."""
        ...

    @property
    def line(self) -> bytes:
        """Line protocol."""
        ...

    @property
    def reason(self) -> str:
        """The database's own words."""
        ...

    @property
    def refused_at(self) -> float:
        """Seconds since the epoch."""
        ...


class DeadLetterBox(Protocol):
    """Points a database refused for good; any method may raise `StorageError`."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    async def newest(
        self, *, limit: int, before_id: int | None = None, sink: str | None = None
    ) -> Sequence[RefusedPoint]:
        """Return a page, newest first; the next page is before the last id of this one."""
        ...

    def export(self, *, sink: str | None = None) -> AsyncIterator[bytes]:
        """Yield all as line protocol, oldest first, some hundred lines at a time."""
        ...

    async def retry(
        self, append: Callable[[Lines], Awaitable[None]], *, sink: str | None = None
    ) -> int:
        """Hand all to `append`, which is durable when it returns; return how many."""
        ...

    async def delete(self, ids: Sequence[int]) -> int:
        """Delete some and return how many there were."""
        ...

    async def clear(self, *, sink: str | None = None) -> int:
        """Delete all, or all of one sink, and return how many there were."""
        ...
