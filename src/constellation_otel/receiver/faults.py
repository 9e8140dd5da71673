"""What a receiver can be ordered to do to requests: refuse, delay, reject a part, or give no answer."""

from __future__ import annotations

from http import HTTPStatus
from typing import TypeAlias

import grpc
from msgspec import Struct

__all__ = ["Delay", "Drop", "Fault", "PartialSuccess", "Refuse"]


class Refuse(Struct, frozen=True, kw_only=True):
    """Answers with an error; nothing of the request is kept.

    Over HTTP the answer is ``http_status``, a ``Retry-After`` header in whole seconds
    (rounded up) and a google.rpc.Status. Over gRPC it is ``grpc_code``, with a
    google.rpc.RetryInfo in the trailing metadata.

    Attributes:
        http_status: OTLP clients retry after 429, 502, 503 and 504.
        grpc_code: OTLP clients retry after UNAVAILABLE and a few more, and after
            RESOURCE_EXHAUSTED if ``retry_after`` is given.
        retry_after: Seconds; ``None`` lets the client choose.
        message: The status message.
        times: How many requests.
    """

    http_status: int = HTTPStatus.SERVICE_UNAVAILABLE
    grpc_code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    retry_after: float | None = None
    message: str = "refused by order"
    times: int = 1


class Delay(Struct, frozen=True):
    """Waits, then keeps the request and answers, even if the client has given up.

    Attributes:
        seconds: How long to wait.
        times: How many requests.
    """

    seconds: float
    times: int = 1


class PartialSuccess(Struct, frozen=True):
    """Answers that some of the request was rejected; the rest is kept.

    Attributes:
        rejected: How many spans, data points or log records: the last ones of the
            request, or all if it has fewer. 0 makes ``message`` a warning.
        message: The error message of the answer.
        times: How many requests.
    """

    rejected: int
    message: str = "rejected by order"
    times: int = 1


class Drop(Struct, frozen=True):
    """Gives no answer: closes the HTTP connection, or resets the gRPC call's stream.

    A gRPC client sees CANCELLED. :meth:`Receiver.stop` cuts whole gRPC connections.

    Attributes:
        kept: Whether the request is kept, as when only its answer gets lost. A correct
            client then sends it again.
        times: How many requests.
    """

    kept: bool = False
    times: int = 1


Fault: TypeAlias = Refuse | Delay | PartialSuccess | Drop
