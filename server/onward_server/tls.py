"""Transport security of both ports; certificates are read again when they change."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from onward.errors import ConfigError
from onward_server.settings import TlsSettings

__all__ = ["grpc_credentials", "load_context", "ssl_context"]

_LOG = logging.getLogger(__name__)


def grpc_credentials(settings: Callable[[], TlsSettings]) -> Any:
    """Server credentials that follow the files.

    Args:
        settings: gives them; asked at each handshake.

    Raises:
        ConfigError: a file that cannot be read, or a key that does not belong to the certificate.
    """
    ssl_context(settings())
    last = _configuration(settings())
    stamp = _stamps(settings())

    def fetch() -> Any:
        nonlocal last, stamp
        try:
            chosen = settings()
            now = _stamps(chosen)
            if now != stamp:
                ssl_context(chosen)
                last, stamp = _configuration(chosen), now
        except ConfigError as error:
            _LOG.error("tls: %s; the certificate in use stays", error)
        return last

    return grpc.dynamic_ssl_server_credentials(last, fetch, settings().client_ca is not None)


def ssl_context(settings: TlsSettings) -> ssl.SSLContext:
    """A context for the HTTP port.

    Raises:
        ConfigError: see `grpc_credentials`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_context(context, settings)
    return context


def load_context(context: ssl.SSLContext, settings: TlsSettings) -> None:
    """Read the files into a context, which later connections use.

    Raises:
        ConfigError: see `grpc_credentials`.
    """
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


def _configuration(settings: TlsSettings) -> Any:
    ca = None if settings.client_ca is None else _read(settings.client_ca)
    return grpc.ssl_server_certificate_configuration(
        [(_read(settings.key), _read(settings.certificate))], root_certificates=ca
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"tls: {path}: {error.strerror}") from error


def _stamps(settings: TlsSettings) -> list[tuple[int, int, int]]:
    files = [settings.certificate, settings.key, *([settings.client_ca] if settings.client_ca else [])]
    try:
        found = [file.stat() for file in files]
    except OSError as error:
        raise ConfigError(f"tls: {error.filename}: {error.strerror}") from error
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found]
