"""Hamilton: a driver's executions as executions, the nodes that are computed as modules."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context

from constellation_otel.adapters.telling import Teller
from constellation_otel.errors import MissingExtraError

try:
    from hamilton.lifecycle import base
except ModuleNotFoundError as error:
    raise MissingExtraError("apache-hamilton", "hamilton") from error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from hamilton.node import Node

    from constellation_otel.listener import ExecutionListener

__all__ = ["adapters", "async_adapters"]


def adapters(listener: ExecutionListener, name: str) -> Sequence[Any]:
    """What a driver's ``Builder.with_adapters`` takes, for any of its executors.

    Args:
        listener: Whom to notify; it is the caller's, who closes it.
        name: The DAG's name, since Hamilton has none.
    """
    return [_Nodes(Teller(listener, "hamilton"), name)]


def async_adapters(listener: ExecutionListener, name: str) -> Sequence[Any]:
    """The same for ``hamilton.async_driver``.

    Its plain hooks fire when a node's task is made, long before it runs: there the task gets its
    context. What happens is told by the async hooks.

    Args:
        listener: Whom to notify; it is the caller's, who closes it.
        name: The DAG's name, since Hamilton has none.
    """
    tasks = _Tasks(Teller(listener, "hamilton"), name)
    return [tasks, _AsyncNodes(tasks)]


class _Elsewhere(
    base.BasePreGraphExecute, base.BasePostGraphExecute, base.BasePreNodeExecute, base.BasePostNodeExecute
):
    """What hooks are in another process, where there is no listener: nothing."""

    def _do_nothing(self, **_: object) -> None:
        return

    pre_graph_execute = post_graph_execute = pre_node_execute = post_node_execute = _do_nothing


class _Graph(base.BasePreGraphExecute, base.BasePostGraphExecute):
    """Tells of executions."""

    def __init__(self, teller: Teller, name: str) -> None:
        self.teller = teller
        self._name = name
        # what the caller of the driver is handling, by run id
        self._handled: dict[str, BaseException] = {}

    def __reduce__(self) -> tuple[type[_Elsewhere], tuple[()]]:
        return _Elsewhere, ()

    def pre_graph_execute(self, *, run_id: str, **_: object) -> None:
        with self.teller.guarded("pre_graph_execute"):
            handled = sys.exc_info()[1]
            if handled is not None:
                self._handled[run_id] = handled
            self.teller.execution_started(self.teller.execution_id(run_id), self._name)

    def post_graph_execute(self, *, run_id: str, success: bool, error: Exception | None, **_: object) -> None:
        with self.teller.guarded("post_graph_execute"):
            raised = error or self.in_flight(run_id)
            self._handled.pop(run_id, None)
            self.teller.execution_ended(self.teller.execution_id(run_id), raised, None if raised else success)

    def in_flight(self, run_id: str) -> BaseException | None:
        """What is raised now and is no Exception: Hamilton says ``success=True`` of it, or no error."""
        raised = sys.exc_info()[1]
        return None if raised is self._handled.get(run_id) else raised

    def node_started(self, run_id: str, node: Node, task_id: str | None, *, attach: bool) -> None:
        """Tells of a node that is about to be computed."""
        # in a task the others may be of other tasks, and which ones is not known
        upstream = [other.name for other in node.dependencies if not other.user_defined] if task_id is None else ()
        execution_id = self.teller.execution_id(run_id)
        self.teller.module_started(execution_id, _key(node, task_id), node.name, upstream=upstream, attach=attach)

    def node_ended(self, run_id: str, node: Node, task_id: str | None, error: Exception | None) -> None:
        """Tells of a node that was computed, or not."""
        raised = error or self.in_flight(run_id)
        self.teller.module_ended(self.teller.execution_id(run_id), _key(node, task_id), raised)


class _Nodes(_Graph, base.BasePreNodeExecute, base.BasePostNodeExecute):
    """Tells of nodes whose hooks run where the body does."""

    def pre_node_execute(self, *, run_id: str, node_: Node, task_id: str | None = None, **_: object) -> None:
        with self.teller.guarded("pre_node_execute"):
            self.node_started(run_id, node_, task_id, attach=True)

    def post_node_execute(
        self, *, run_id: str, node_: Node, error: Exception | None, task_id: str | None = None, **_: object
    ) -> None:
        with self.teller.guarded("post_node_execute"):
            self.node_ended(run_id, node_, task_id, error)


class _Tasks(_Graph, base.BasePreNodeExecute, base.BasePostNodeExecute):
    """Gives a node's task its context while the task is made, which copies it."""

    def __init__(self, teller: Teller, name: str) -> None:
        super().__init__(teller, name)
        self._tokens: dict[tuple[str, str], Any] = {}

    def pre_node_execute(self, *, run_id: str, node_: Node, task_id: str | None = None, **_: object) -> None:
        with self.teller.guarded("pre_node_execute"):
            key = _key(node_, task_id)
            context = self.teller.context(self.teller.execution_id(run_id), key)
            self._tokens[run_id, key] = otel_context.attach(context)

    def post_node_execute(self, *, run_id: str, node_: Node, task_id: str | None = None, **_: object) -> None:
        with self.teller.guarded("post_node_execute"):
            otel_context.detach(self._tokens.pop((run_id, _key(node_, task_id))))


class _AsyncNodes(base.BasePreNodeExecuteAsync, base.BasePostNodeExecuteAsync):
    """Tells of nodes from the tasks that compute them.

    No coroutines themselves: those run in tasks of their own, where what is in flight cannot be seen.
    """

    def __init__(self, graph: _Graph) -> None:
        self._graph = graph

    def pre_node_execute(self, *, run_id: str, node_: Node, task_id: str | None = None, **_: object) -> Awaitable[None]:
        with self._graph.teller.guarded("pre_node_execute"):
            self._graph.node_started(run_id, node_, task_id, attach=False)
        return _nothing()

    def post_node_execute(
        self, *, run_id: str, node_: Node, error: Exception | None, task_id: str | None = None, **_: object
    ) -> Awaitable[None]:
        with self._graph.teller.guarded("post_node_execute"):
            self._graph.node_ended(run_id, node_, task_id, error)
        return _nothing()


async def _nothing() -> None:
    return


def _key(node: Node, task_id: str | None) -> str:
    return str(node.name) if task_id is None else f"{task_id}/{node.name}"
