"""Kedro: a project's runs as executions, its nodes as modules.

``HOOKS = (ConstellationHooks(OtlpListener()),)`` in a project's ``settings.py`` is all that it takes.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from constellation_otel._support.fork import PerProcess, after_fork_in_child
from constellation_otel.adapters.telling import Teller
from constellation_otel.errors import MissingExtraError
from constellation_otel.listener import ExecutionListener

try:
    from kedro.framework.hooks import hook_impl
    from kedro.framework.project import settings
except ModuleNotFoundError as error:
    raise MissingExtraError("kedro", "kedro") from error

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

    from constellation_otel.automatic import Further

__all__ = ["ConstellationHooks", "further_hooks"]

_RUNS: Final = "CONSTELLATION_OTEL_KEDRO_RUNS"
"""The variable with the runs of this process, for those that it starts: the carrier of each, by Kedro's run id."""
_MAX_RUNS: Final = 64
"""Runs that are open at most; Kedro says nothing of the end of one that was interrupted."""


class ConstellationHooks:
    """Hooks for a project's ``settings.HOOKS``.

    With SequentialRunner and ThreadRunner nodes run in this process. With ParallelRunner each
    is told of by the process that runs it, which joins the run and delivers at the node's end.

    Args:
        listener: Whom to notify; it is the project's, who closes it.

    Attributes:
        listener: The same.
    """

    _lock = PerProcess(lambda: threading.Lock())  # noqa: PLW0108 - which class that is, is known when it is called

    def __init__(self, listener: ExecutionListener) -> None:
        self.listener = listener
        self.teller = Teller(listener, "kedro")
        # of each run, the nodes whose outputs a node takes; a forked process needs them, too
        self._upstream: dict[str, dict[str, list[str]]] = {}
        self._forget()
        after_fork_in_child(self._forget)

    def _forget(self) -> None:
        self._executions: dict[str, UUID] = {}

    @hook_impl
    def before_pipeline_run(self, run_params: Mapping[str, Any], pipeline: Pipeline) -> None:
        with self.teller.guarded("before_pipeline_run"):
            run_id = _run_id_of(run_params)
            # Kedro's is the time of day
            salt = f"{socket.gethostname()}:{os.getpid()}:{run_params.get('project_path')}"
            execution_id = self.teller.execution_id(f"{salt}:{run_id}")
            # one name, before it could be several
            names = run_params.get("pipeline_names") or [run_params.get("pipeline_name") or "__default__"]
            self._upstream[run_id] = {
                node.name: sorted(other.name for other in others) for node, others in pipeline.node_dependencies.items()
            }
            self._executions[run_id] = execution_id
            self.teller.execution_started(execution_id, "+".join(names))
            self._carry(run_id, self.teller.carrier(execution_id))
            for oldest in list(self._executions)[:-_MAX_RUNS]:
                self._forget_run(oldest)

    @hook_impl
    def after_pipeline_run(self, run_params: Mapping[str, Any]) -> None:
        self._run_ended(run_params, None)

    @hook_impl
    def on_pipeline_error(self, error: Exception, run_params: Mapping[str, Any]) -> None:
        self._run_ended(run_params, error)

    @hook_impl
    def before_node_run(self, node: Node, run_id: str) -> None:
        with self.teller.guarded("before_node_run"):
            execution_id = self._execution_of(run_id)
            if execution_id is not None:
                upstream = self._upstream.get(run_id, {}).get(node.name, ())
                self.teller.module_started(execution_id, node.name, node.name, upstream=upstream, attach=True)

    @hook_impl
    def after_node_run(self, node: Node, run_id: str) -> None:
        self._node_ended(node, run_id, None)

    @hook_impl
    def on_node_error(self, error: Exception, node: Node, run_id: str) -> None:
        self._node_ended(node, run_id, error)

    def _node_ended(self, node: Node, run_id: str, error: Exception | None) -> None:
        with self.teller.guarded("after_node_run"):
            execution_id = self._execution_of(run_id)
            if execution_id is not None:
                self.teller.module_ended(execution_id, node.name, error)
                if run_id not in self._executions:
                    # a process of a pool may end without notice
                    self.teller.flush()

    def _run_ended(self, run_params: Mapping[str, Any], error: Exception | None) -> None:
        with self.teller.guarded("after_pipeline_run"):
            run_id = _run_id_of(run_params)
            self.teller.execution_ended(self._executions[run_id], error)
            self._forget_run(run_id)

    def _forget_run(self, run_id: str) -> None:
        self._executions.pop(run_id, None)
        self._upstream.pop(run_id, None)
        self._carry(run_id, None)

    def _execution_of(self, run_id: str) -> UUID | None:
        """The execution of a run of this process, or of the one that has started this one."""
        execution_id = self._executions.get(run_id)
        if execution_id is not None:
            return execution_id
        carrier = json.loads(os.environ.get(_RUNS, "{}")).get(run_id)
        return None if carrier is None else self.teller.joined(carrier)

    def _carry(self, run_id: str, carrier: Mapping[str, str] | None) -> None:
        """Has this process's children know a run, or forget it."""
        with self._lock:
            runs = json.loads(os.environ.get(_RUNS, "{}"))
            runs.pop(run_id, None)
            if carrier:
                runs[run_id] = carrier
            os.environ[_RUNS] = json.dumps(runs)


def further_hooks(further: Further) -> ConstellationHooks | None:
    """The hooks that a project gets without saying so in its settings.

    Args:
        further: Gives the listener to notify besides those of the project's own hooks.

    Returns:
        ``None`` where there is nothing to notify besides.
    """
    own = [each.listener for each in settings.HOOKS if isinstance(each, ConstellationHooks)]
    listener = further(ExecutionListener.composite(*own))
    return None if listener is ExecutionListener.noop else _hooks_of(listener)


@lru_cache(maxsize=1)
def _hooks_of(listener: ExecutionListener) -> ConstellationHooks:
    """The same ones for all sessions: the forked process of a node has to know what its parent's do."""
    return ConstellationHooks(listener)


def _run_id_of(run_params: Mapping[str, Any]) -> str:
    """What nodes' hooks are given as the run's id, and a run's hooks under another name in the first releases."""
    return str(run_params["run_id"] if "run_id" in run_params else run_params["session_id"])
