"""TLS for clients: verification, and client certificates that may be renewed at run time."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path
from typing import TypeAlias

_Stamp: TypeAlias = tuple[tuple[int, int, int], ...]


class ClientTls:
    """TLS settings of the connections to one server.

    `verify` says whether the server's certificate and name are checked; `client_cert` is a PEM
    file that may hold the key, too; `client_key` has no passphrase. Files are read when a
    connection is made.
    """

    def __init__(
        self,
        *,
        verify: bool = True,
        client_cert: Path | None = None,
        client_key: Path | None = None,
    ) -> None:
        self.verify = verify
        self._client_cert = client_cert
        self._client_key = client_key
        self._context: ssl.SSLContext | None = None
        self._loaded: _Stamp | None = None

    def context(self) -> ssl.SSLContext:
        """Return the context for a new connection, with the current client certificate.

        It is always the same object, so that a pool's connections see a renewal. While a renewed
        pair cannot be used, perhaps because only one file has been replaced, the previous one
        stays in use.

        Raises:
            OSError: no usable client certificate has been read yet.
        """
        if self._context is None:
            self._context = ssl.create_default_context()
            if not self.verify:
                self._context.check_hostname = False
                self._context.verify_mode = ssl.CERT_NONE
        if self._client_cert is not None:
            self._load(self._context, self._client_cert)
        return self._context

    def _load(self, context: ssl.SSLContext, cert: Path) -> None:
        try:
            stamp = _stamp(cert, self._client_key or cert)
            if stamp == self._loaded:
                return
            # Loading a mismatched pair would leave the context without a key.
            check_client_certificate(cert, self._client_key)
            context.load_cert_chain(cert, self._client_key)
        except (OSError, ValueError) as exc:
            if self._loaded is None:
                why = exc if isinstance(exc, UnusableCertificate) else "a file cannot be read"
                raise OSError(f"the client certificate cannot be used: {why}") from None
        else:
            self._loaded = stamp


class UnusableCertificate(ValueError):
    """A client certificate or its key cannot be used; the message says why."""


def check_client_certificate(cert: Path, key: Path | None) -> None:
    """Raise UnusableCertificate unless certificate and key can be used together."""
    for file, what in ((cert, "certificate"), (key, "key")):
        if file is not None:
            _check_readable(file, what)
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(cert, key, password=_refuse_passphrase)
    except ssl.SSLError as exc:
        raise UnusableCertificate(_why(exc, key)) from exc
    except OSError as exc:
        raise UnusableCertificate(f"cannot be read ({exc.strerror})") from exc


def _check_readable(file: Path, what: str) -> None:
    try:
        if not stat.S_ISREG(mode := file.stat().st_mode) and not stat.S_ISDIR(mode):
            # Reading a pipe or a device may never end.
            raise UnusableCertificate(f"the {what} file is not a regular file")
        with file.open("rb") as opened:
            opened.read(1)
    except OSError as exc:
        raise UnusableCertificate(f"the {what} file cannot be read ({exc.strerror})") from exc


def _refuse_passphrase() -> str:
    raise UnusableCertificate("the key is encrypted; remove its passphrase")


def _why(exc: ssl.SSLError, key: Path | None) -> str:
    if exc.reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    if key is None:
        return "the file does not hold a certificate and its key in PEM format"
    return "the files are not a certificate and a key in PEM format"


def _stamp(*files: Path) -> _Stamp:
    stats = [file.stat() for file in files]
    return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in stats)
