"""What is done when the process ends, by every way out that runs any code.

An interpreter's exit calls what ``atexit`` has. Before Python 3.13 the forked children
of multiprocessing, and of billiard at any version, do not get there: they leave through
``multiprocessing.util._exit_function`` and ``os._exit``. SIGTERM without a handler,
SIGKILL and a bare ``os._exit`` run no code at all.
"""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

from constellation_otel._fork import after_fork_in_child
from constellation_otel._log import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["call_at_exit", "exit_hook", "forget_at_exit"]

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


def forget_at_exit(hook: Callable[[], None]) -> None:
    """Takes back what :func:`call_at_exit` was asked for."""
    _EXIT.hooks.pop(hook, None)
    atexit.unregister(hook)


class _Exit:
    """This process's hooks, the next one last, and the finalizer that has multiprocessing call them."""

    def __init__(self) -> None:
        self.hooks: dict[Callable[[], None], None] = {}
        self._finalizer: Any = None
        after_fork_in_child(self._forget)

    def _forget(self) -> None:
        self.hooks = {}
        self._finalizer = None

    def join_multiprocessing(self) -> None:
        """Has multiprocessing's way out call the hooks, where there is such a way; it is never imported for this."""
        util = sys.modules.get("multiprocessing.util")
        if util is None or not self.hooks or (self._finalizer is not None and self._finalizer.still_active()):
            return
        self._finalizer = util.Finalize(None, self._leave, exitpriority=_PRIORITY)
        # a child of a fork server may have had events while it imported the main module, before the registry is emptied
        util.register_after_fork(self, _Exit.join_multiprocessing)

    def _leave(self) -> None:
        others = [thread for thread in threading.enumerate() if _is_awaited(thread)]
        if others:
            # no daemon, though a daemon may have forked this process: so that it is awaited like those
            thread = threading.Thread(target=self._call_hooks, args=(others,), name="exit", daemon=False)
            thread.start()
        else:
            self._call_hooks(others)

    def _call_hooks(self, others: Iterable[threading.Thread]) -> None:
        for thread in others:
            # no deadline of ours: the process does not end before they do
            thread.join()
        while self.hooks:
            hook, _ = self.hooks.popitem()
            try:
                hook()
            except Exception as error:  # noqa: BLE001 - of one hook; the others are still called
                log(_LOGGER, logging.ERROR, "%s raised at the end of the process", hook, error=error)


def _is_awaited(thread: threading.Thread) -> bool:
    """Whether the process will wait for a thread before it ends: a child of multiprocessing does, of billiard not."""
    process: Any = sys.modules["multiprocessing.process"]
    is_child = process.parent_process() is not None
    return is_child and not thread.daemon and thread is not threading.current_thread()


_EXIT: Final = _Exit()
