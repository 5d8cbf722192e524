"""Transport security of both ports; certificates are read again when they change."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
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
        self.context = ssl_context(settings())
        self.context.set_alpn_protocols([protocol])

    def follow(self) -> None:
        """Read the files where they have changed; what cannot be used is logged, and the old ones stay."""
        settings = self._settings()
        try:
            stamps = _stamps(settings)
            if stamps == self._stamps:
                return
            self._stamps = stamps
            ssl_context(settings)
            _load(self.context, settings)
        except ConfigError as error:
            _LOG.error("tls: %s; the certificate in use stays", error)


def ssl_context(settings: TlsSettings) -> ssl.SSLContext:
    """A context for a listener.

    Raises:
        ConfigError: see FollowedContext.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, settings)
    return context


def _load(context: ssl.SSLContext, settings: TlsSettings) -> None:
    """Read the files into a context, which later connections use.

    Raises:
        ConfigError: see FollowedContext.
    """
    _stamps(settings)
    try:
        context.load_cert_chain(settings.certificate, settings.key)
        if settings.client_ca is not None:
            context.load_verify_locations(settings.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        raise ConfigError(
            f"tls: certificate {settings.certificate}, key {settings.key}, client_ca {settings.client_ca}: "
            f"{error.strerror or error}"
        ) from error


def _stamps(settings: TlsSettings) -> list[tuple[int, int, int]]:
    files = [settings.certificate, settings.key, *([settings.client_ca] if settings.client_ca else [])]
    try:
        found = [file.stat() for file in files]
    except OSError as error:
        raise ConfigError(f"tls: {error.filename}: {error.strerror}") from error
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found]
