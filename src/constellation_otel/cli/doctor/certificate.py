"""The certificate of an endpoint that speaks TLS: until when it is valid."""

from __future__ import annotations

import socket
import ssl
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, cast

from constellation_otel.cli.doctor.finding import Finding, ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_certificate", "context_of"]

_SOON_S: Final = 14 * 86_400.0


def context_of(
    certificate: str | None = None,
    client_certificate: str | None = None,
    client_key: str | None = None,
    *,
    speaks_http2: bool = False,
) -> ssl.SSLContext:
    """Whom to trust, and who this is, by PEM files.

    Args:
        certificate: Whom to trust; the system's authorities otherwise.
        client_certificate: Who this is.
        client_key: Its key, unless it is in the same file.
        speaks_http2: Whether to ask for HTTP/2, as gRPC does.
    """
    context = ssl.create_default_context(cafile=certificate)
    if client_certificate is not None:
        # without a password OpenSSL would ask for one, on the terminal
        context.load_cert_chain(client_certificate, client_key, password="")
    if speaks_http2:
        context.set_alpn_protocols(["h2"])
    return context


def check_certificate(host: str, port: int, context: ssl.SSLContext, timeout: float) -> Iterator[Finding]:
    """Looks at the certificate of an endpoint that was connected to just now.

    Args:
        host: Its name or address.
        port: Its port.
        context: Whom to trust.
        timeout: Seconds for each step.
    """
    try:
        with (
            socket.create_connection((host, port), timeout) as connection,
            context.wrap_socket(connection, server_hostname=host) as tls,
        ):
            # a certificate that was verified is there, and has a date
            until = ssl.cert_time_to_seconds(cast("str", (tls.getpeercert() or {})["notAfter"]))
    except OSError as error:
        found = f"it was connected to, but Python's own TLS does not accept its certificate: {error}"
        yield warning("tls", found, "name the authority's PEM file by OTEL_EXPORTER_OTLP_CERTIFICATE")
        return
    found = f"its certificate is accepted, and valid until {datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M} UTC"
    if until - time.time() < _SOON_S:
        yield warning("tls", found, "renew the certificate before that day")
    else:
        yield ok("tls", found)
