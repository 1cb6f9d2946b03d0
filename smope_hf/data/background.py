"""Prepare what comes next while the present is in use."""

from collections.abc import Generator, Iterator
from contextlib import closing
from queue import Empty, Queue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")


def in_background(items: Generator[Item, None, None], ahead: int = 2) -> Iterator[Item]:
    """Go through items that a thread of its own prepares.

    An error of the thread is raised where its item would have come. Whoever stops early stops the thread as well.

    Args:
        items: prepares the items, in the thread.
        ahead: items that may wait, at least 1; as many and one in the making are there at most.
    """
    waiting: Queue = Queue(maxsize=ahead)
    stopped = Event()

    def prepare():
        with closing(items):
            try:
                for item in items:
                    waiting.put((item, None))
                    if stopped.is_set():
                        return
            except BaseException as error:  # whatever it is, it belongs to whoever asked for the items
                waiting.put((None, error))
            else:
                waiting.put((None, StopIteration()))

    thread = Thread(target=prepare, name="smope-prepare", daemon=True)
    thread.start()
    try:
        while True:
            item, end = waiting.get()
            if isinstance(end, StopIteration):
                return
            if end is not None:
                raise end
            yield item
    finally:
        stopped.set()
        while thread.is_alive():  # it may wait for room, once, before it sees that it is stopped
            try:
                waiting.get_nowait()
            except Empty:
                thread.join(timeout=0.01)
