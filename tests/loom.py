"""An engine that does all that the check of adapters knows, over a Teller: retries, groups, mapped nodes, processes."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from constellation_otel.adapters.telling import Teller

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from constellation_otel.listener import ExecutionListener
    from constellation_otel.testing import Node, Pipeline


def run(pipeline: Pipeline, listener: ExecutionListener) -> Mapping[str, object]:
    """Runs a pipeline's nodes one after the other; those of the case ``processes`` each in a forked process."""
    teller = Teller(listener, "loom")
    execution_id = teller.execution_id(uuid4())
    teller.execution_started(execution_id, pipeline.name)
    outputs: dict[str, Any] = {}
    try:
        for node in pipeline.nodes:
            if node.function is not None:
                outputs[node.name] = _output_of(teller, execution_id, node, outputs, pipeline)
    except BaseException as error:
        teller.execution_ended(execution_id, error)
        raise
    teller.execution_ended(execution_id)
    taken = {name for node in pipeline.nodes for name in node.upstream}
    return {name: output for name, output in outputs.items() if name not in taken}


def _output_of(
    teller: Teller, execution_id: UUID, node: Node, outputs: Mapping[str, Any], pipeline: Pipeline
) -> object:
    inputs = {name: outputs[name] for name in node.upstream}
    if node.times is not None:
        return [
            _tried(teller, execution_id, node, f"{node.name}[{index}]", {**inputs, "index": index})
            for index in range(node.times)
        ]
    if node.parent is not None:
        with teller.module(execution_id, node.parent, node.parent):
            return _tried(teller, execution_id, node, node.name, inputs)
    if pipeline.case == "processes":
        global _inherited  # noqa: PLW0603 - what a forked process has of its parent
        _inherited = teller
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            return pool.submit(_elsewhere, teller.carrier(execution_id), node, inputs).result()
    return _tried(teller, execution_id, node, node.name, inputs)


_inherited: Teller


def _elsewhere(carrier: Mapping[str, str], node: Node, inputs: Mapping[str, Any]) -> object:
    execution_id = _inherited.joined(carrier)
    assert execution_id is not None
    output = _tried(_inherited, execution_id, node, node.name, inputs)
    assert _inherited.flush(10.0)
    return output


def _tried(teller: Teller, execution_id: UUID, node: Node, key: str, inputs: Mapping[str, Any]) -> object:
    assert node.function is not None
    attempt = 1
    while True:
        details = {"attempt": attempt, "parent": node.parent, "upstream": node.upstream}
        try:
            with teller.module(execution_id, key, node.name, **details):
                return node.function(**inputs)
        except ValueError:
            if attempt == node.attempts:
                raise
        attempt += 1
