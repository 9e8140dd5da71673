"""What forked children do first; in interpreters of their own, which have one thread."""

from __future__ import annotations

import gc
import subprocess
import sys

from constellation_otel._support import fork as _fork
from constellation_otel._support.fork import after_fork_in_child

FORKING = """
import gc, os, sys
from constellation_otel._support.fork import after_fork_in_child

class Listener:
    def __init__(self, name):
        self.name = name
    def told(self):
        calls.append((self.name, os.getpid() != parent))

calls, parent = [], os.getpid()
first, dead, second = Listener("first"), Listener("dead"), Listener("second")
for listener in (first, dead, second):
    after_fork_in_child(listener.told)
del dead, listener
listener = None
gc.collect()
child = os.fork()
if child == 0:
    os.write(1, f"child {calls}\\n".encode())
    os._exit(0)
_, status = os.waitpid(child, 0)
print("parent", calls, os.waitstatus_to_exitcode(status))
"""

FORKED_WHILE_LOGGING = """
import logging, os, sys
from constellation_otel._support.log import RateLimitedLog

log = RateLimitedLog()
with log._lock:
    child = os.fork()
    if child == 0:
        written = log.write(logging.getLogger(), logging.WARNING, "key", "from the child")
        os.write(1, f"{written}\\n".encode())
        os._exit(0)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
"""


def lines_of(program: str) -> list[str]:
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    return ran.stdout.splitlines()


def test_a_child_calls_the_methods_of_living_objects_in_order_and_the_parent_calls_none() -> None:
    assert lines_of(FORKING) == ["child [('first', True), ('second', True)]", "parent [] 0"]


def test_a_log_whose_lock_was_held_in_the_fork_does_not_hang_the_child() -> None:
    assert lines_of(FORKED_WHILE_LOGGING) == ["True", "0"]


def test_an_object_that_is_gone_leaves_nothing_behind() -> None:
    class Listener:
        def told(self) -> None:
            """Told of a fork."""

    before = len(_fork._METHODS)
    for _ in range(100):
        after_fork_in_child(Listener().told)
    gc.collect()
    assert len(_fork._METHODS) <= before
