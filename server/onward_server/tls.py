"""Transport security of both ports; certificates are read again when they change."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import final

from onward.errors import ConfigError
from onward_server.settings import TlsSettings

__all__ = ["FollowedContext", "ssl_context"]

_LOG = logging.getLogger(__name__)


@final
class FollowedContext:
    """A context whose certificates are read again when their files change.

    Args:
        settings: gives the files.
        protocol: what is agreed on with clients (ALPN).

    Attributes:
        context: for listeners.

    Raises:
        ConfigError: a file that cannot be read, or a key that does not belong to the certificate.
    """

    def __init__(self, settings: Callable[[], TlsSettings], protocol: str) -> None:
        self._settings = settings
        self._stamps = _stamps(settings())
        self._protocol = protocol
        self._failure = ""
        self._current = self.context = self._made()
        # Called in every handshake, with a name or without. A listener keeps the context that it was given,
        # and one into which files are read again would go on trusting the authorities that it had.
        self.context.sni_callback = self._choose

    def follow(self, *, again: bool = False) -> None:
        """Read the files where they have changed, or `again`; what cannot be used is logged and left."""
        settings = self._settings()
        try:
            stamps = _stamps(settings)
            if stamps == self._stamps and not again:
                return
            self._stamps = stamps
            self._current = self._made()
            self._failure = ""
        except ConfigError as error:
            if again or str(error) != self._failure:
                _LOG.error("%s; the certificate in use stays", error)
            self._failure = str(error)

    def _made(self) -> ssl.SSLContext:
        context = ssl_context(self._settings())
        context.set_alpn_protocols([self._protocol])
        return context

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._current


def ssl_context(settings: TlsSettings) -> ssl.SSLContext:
    """A context for a listener.

    Raises:
        ConfigError: see FollowedContext.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _stamps(settings)
    try:
        # without a password at hand OpenSSL would ask for one at the terminal
        context.load_cert_chain(settings.certificate, settings.key, password=lambda: "")
        if settings.client_ca is not None:
            context.load_verify_locations(settings.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
            # a session that is taken up again presents no certificate, whoever is trusted by then
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
    except OSError as error:
        what = f"certificate {settings.certificate}, key {settings.key}, client_ca {settings.client_ca}"
        reason = str(error.strerror or error)
        if _is_encrypted(settings.key):
            what, reason = f"key {settings.key}", "it is encrypted; decrypt it with `openssl pkey`"
        raise ConfigError(f"tls: {what}: {reason}") from error
    return context


def _is_encrypted(key: Path) -> bool:
    """Whether a PEM file holds a key that needs a password (RFC 7468, and what OpenSSL wrote before it)."""
    try:
        text = key.read_bytes()
    except OSError:
        return False
    return b"BEGIN ENCRYPTED PRIVATE KEY" in text or b"Proc-Type: 4,ENCRYPTED" in text


def _stamps(settings: TlsSettings) -> list[tuple[int, int, int]]:
    files = [settings.certificate, settings.key, *([settings.client_ca] if settings.client_ca else [])]
    try:
        found = [file.stat() for file in files]
    except OSError as error:
        raise ConfigError(f"tls: {error.filename}: {error.strerror}") from error
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found]
