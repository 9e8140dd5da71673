"""What is done when the process ends, by every way out that runs any code.

An interpreter's exit calls what ``atexit`` has. Before Python 3.13 the forked children
of multiprocessing, and of billiard at any version, do not get there: they leave through
``multiprocessing.util._exit_function`` and ``os._exit``, and a worker of billiard's pool,
which Celery's are, through its ``on_exit``. SIGTERM without a handler, SIGKILL and a bare
``os._exit`` run no code at all.
"""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from constellation_otel._support.fork import after_fork_in_child
from constellation_otel._support.log import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["call_at_exit", "call_where_atexit_is_not_reached", "exit_hook", "forget_at_exit"]

_LOGGER: Final = logging.getLogger(__name__)
_PRIORITY: Final = 12
"""Of multiprocessing's finalizers: after pools end (15), before queues take nothing more (10)."""


def exit_hook(method: Callable[[], None]) -> Callable[[], None]:
    """A function for :func:`call_at_exit` that calls a bound method.

    It does not keep the method's object alive, and is forgotten with it.
    """

    def hook() -> None:
        found = reference()
        if found is not None:
            found()

    # no weakref.finalize: the first one registers an exit hook of its own, after which urllib3's pools close nothing
    reference = weakref.WeakMethod(method, lambda _: forget_at_exit(hook))
    return hook


def call_at_exit(hook: Callable[[], None]) -> None:
    """Has a function called when this process ends, those of the latest calls first.

    A call for the same function again moves it to the front. A forked child has to ask for
    itself, with its first event: multiprocessing empties its own registry there.
    """
    _EXIT.hooks.pop(hook, None)
    _EXIT.hooks[hook] = None
    # an earlier registration stays: an exit that has begun calls nothing that is registered since
    atexit.register(hook)
    _EXIT.join_multiprocessing()
    _EXIT.join_billiard()


def call_where_atexit_is_not_reached(hook: Callable[[], None]) -> None:
    """Has a function called at the end of this child, if that does not get to ``atexit`` and anything else is called.

    It is called behind what :func:`call_at_exit` is asked for after this.
    """
    _EXIT.hooks[hook] = None


def forget_at_exit(hook: Callable[[], None]) -> None:
    """Takes back what :func:`call_at_exit` was asked for."""
    _EXIT.hooks.pop(hook, None)
    atexit.unregister(hook)


class _Exit:
    """This process's hooks, the next one last, and the finalizer that has multiprocessing call them."""

    def __init__(self) -> None:
        self.hooks: dict[Callable[[], None], None] = {}
        self._finalizer: Any = None
        self._thread: threading.Thread | None = None
        self._worker: Any = None
        after_fork_in_child(self._forget)

    def _forget(self) -> None:
        self.hooks = {}
        self._finalizer = self._thread = self._worker = None

    def join_multiprocessing(self) -> None:
        """Has multiprocessing's way out call the hooks, where there is such a way; it is never imported for this."""
        util = sys.modules.get("multiprocessing.util")
        if util is None or not self.hooks or (self._finalizer is not None and self._finalizer.still_active()):
            return
        if util.is_exiting():
            # the finalizers have been called, and a thread that the process waits for has its first event
            self._leave_after(_awaited())
            return
        self._finalizer = util.Finalize(None, self._leave, exitpriority=_PRIORITY)
        # a child of a fork server may have had events while it imported the main module, before the registry is emptied
        util.register_after_fork(self, _Exit.join_multiprocessing)

    def join_billiard(self) -> None:
        """Has a worker of billiard's pool call the hooks at its end, behind its own ``on_exit``."""
        billiard = sys.modules.get("billiard.process")
        worker: Any = None if billiard is None else getattr(billiard.current_process(), "_target", None)
        if worker is not self._worker and hasattr(worker, "on_exit"):
            self._worker, worker.on_exit = worker, partial(self._leave_billiard, worker.on_exit)

    def _leave_billiard(self, on_exit: Callable[[int, int], object] | None, pid: int, exit_code: int) -> None:
        try:
            if on_exit is not None:
                on_exit(pid, exit_code)
        finally:
            self._call_hooks(())

    def _leave(self) -> None:
        others = _awaited()
        if others:
            self._leave_after(others)
        else:
            self._call_hooks(others)

    def _leave_after(self, others: list[threading.Thread]) -> None:
        """Calls the hooks when threads have ended, in one that the process waits for as it does for those."""
        if others and (self._thread is None or not self._thread.is_alive()):
            # no daemon, though a daemon may have forked this process
            self._thread = threading.Thread(target=self._call_hooks, args=(others,), name="exit", daemon=False)
            self._thread.start()

    def _call_hooks(self, others: Iterable[threading.Thread]) -> None:
        for thread in others:
            # no deadline of ours: the process does not end before they do
            thread.join()
        while self.hooks:
            hook, _ = self.hooks.popitem()
            try:
                hook()
            except Exception as error:  # noqa: BLE001 - the SDK's perhaps; the others are still called
                log(_LOGGER, logging.ERROR, "an exit hook raised; the other ones are still called", error=error)


def _awaited() -> list[threading.Thread]:
    """The threads that the process waits for before it ends: a child of multiprocessing does, of billiard not."""
    process: Any = sys.modules["multiprocessing.process"]
    if process.parent_process() is None:
        return []
    return [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]


_EXIT: Final = _Exit()
