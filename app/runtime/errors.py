"""Every error this service raises on purpose, split by what to do about it.

* IngestError
    * SettingsError            fatal: a setting must be fixed; exit status 2
    * FilterInvalid            fatal at start; later the previous filter stays in use
    * SourceError              reconnect
        * SourceUnavailable    Home Assistant cannot be reached or hung up
        * SourceAuthRejected   the token must be replaced; retry slowly
        * SourceProtocolError  the peer broke the protocol, or did not answer in time
        * CommandFailed        Home Assistant answered a command with an error
    * QueryFailed              a database did not answer a query in full; repeat it
    * DatabaseRefused          a database refuses requests until a person acts
    * Unforeseen               a bug: log it, count it, continue with the next input
    * StorageError             a local database operation failed; nothing was changed
        * StorageFull          the disk or the configured bound is reached
            * JournalFull      the journal is at its bound and drops new points; count them
        * StorageDamaged       the file cannot be read as a database
        * StorageNewer         a newer version of this service wrote the file
        * StorageLocked        another process owns the folder; exit status 2
"""


class IngestError(Exception):
    """Base of every error this service raises on purpose."""


class SettingsError(IngestError):
    """A setting is missing or unusable; the message is one line for a person."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        """A sentence for each."""


class FilterInvalid(IngestError):
    """The entity filter cannot be used; the message says where it is wrong."""


class Unforeseen(IngestError):
    """A bug; `app.runtime.retry.contained` raises it in place of an unforeseen exception."""


class SourceError(IngestError):
    """The connection to Home Assistant is unusable; reconnect."""


class SourceUnavailable(SourceError):
    """Home Assistant cannot be reached, or the connection was lost."""

    def __init__(self, why: str, *, advice: str | None = None) -> None:
        super().__init__(why)
        self.advice = advice
        """Whole sentences that say what to do about it, where that is known."""


class SourceAuthRejected(SourceError):
    """Home Assistant refused the token; retry slowly."""


class SourceProtocolError(SourceError):
    """The peer broke the protocol or left a command unanswered."""


class CommandFailed(SourceError):
    """Home Assistant answered a command with `success: false`."""

    def __init__(self, command: str, *, code: str, message: str) -> None:
        super().__init__(f"{command}: {code}: {message}")
        self.command = command
        self.code = code


class QueryFailed(IngestError):
    """A database did not answer a query, or only a part of it; repeat it."""


class DatabaseRefused(IngestError):
    """A database refuses requests until a person acts; the message says why and what to do."""


class StorageError(IngestError):
    """An operation on a local database failed; nothing was changed."""


class StorageFull(StorageError):
    """The disk is full, or the file has reached its bound."""


class JournalFull(StorageFull):
    """The journal is at its bound and its policy drops new points."""


class StorageDamaged(StorageError):
    """The file is not a database, or parts of it cannot be read."""


class StorageNewer(StorageError):
    """The file was written by a newer version of this service."""


class StorageLocked(StorageError):
    """Another process uses the same folder."""
