"""Worker processes that tell of their own modules: each has a listener, which joins the execution.

    python examples/worker_processes.py

The process that starts an execution gives its id and its traceparent to the workers,
with the work. An OTLP endpoint (localhost:4317, or what OTEL_EXPORTER_OTLP_ENDPOINT says)
gets one trace: the execution's span from here, its modules' spans from the workers.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from time import perf_counter
from uuid import UUID, uuid4, uuid5

from opentelemetry import context, trace

from constellation_otel import OtlpListener

DAG = "word-counts"
TEXTS = {"first": "to be or not to be", "second": "that is the question"}

# every worker imports this file, and has one of its own; what it holds is delivered when the process ends
listener = OtlpListener()


def count_words(execution_id: UUID, traceparent: str | None, name: str, text: str) -> int:
    """A module, which this worker tells of."""
    listener.join(execution_id, DAG, traceparent)
    module_id = uuid5(execution_id, name)
    listener.on_module_start(execution_id, module_id, name)
    start = perf_counter()
    # its span is the current one while the body runs
    token = context.attach(listener.module_context(execution_id, module_id, context.get_current()))
    try:
        trace.get_current_span().set_attribute("worker.pid", os.getpid())
        count = len(text.split())
    except Exception as error:
        listener.on_module_failed(execution_id, module_id, name, error)
        raise
    finally:
        context.detach(token)
    listener.on_module_complete(execution_id, module_id, name, (perf_counter() - start) * 1e3)
    return count


def main() -> None:
    execution_id = uuid4()
    start = perf_counter()
    listener.on_execution_start(execution_id, DAG)
    traceparent = listener.traceparent_of(execution_id)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        counts = [pool.submit(count_words, execution_id, traceparent, *text) for text in TEXTS.items()]
        print(sum(count.result() for count in counts))
    listener.on_execution_complete(execution_id, DAG, True, (perf_counter() - start) * 1e3)


if __name__ == "__main__":
    main()
