"""What the browser asks of the page's functions: read within bounds, and written anew from what was understood."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gradio as gr
from limits import Limits
from rates import address_of
from routes import KEY, NotTaken

FIELDS = {"data", "event_data", "fn_index", "trigger_id", "session_hash"}
TEXT = 4096  # characters of a choice: a checkpoint's name may be a path
VALUES = 5000  # brackets and commas of a message: forty images have some five hundred
WAITING_EACH = 8  # requests of one visit in the queue
WAITING_ADDRESS = 25  # of one address


@dataclass(frozen=True)
class Function:
    """A function of the page that visitors may call.

    Args:
        index: gradio's number of it.
        triggers: numbers of the components whose events call it.
        inputs: what it takes, as gradio's components.
        line: the queue that it waits in.
    """

    index: int
    triggers: frozenset[int]
    inputs: Sequence[gr.components.Component]
    line: str


@dataclass(frozen=True)
class Message:
    """A request that is understood; `body` is what gradio is given."""

    key: str
    function: Function
    body: bytes


def open_functions(page: gr.Blocks) -> dict[int, Function]:
    """The functions that the page's own components call, through the queue. All others are closed.

    Raises:
        ValueError: for a function that goes round the queue, or an input that `Messages` cannot read.
    """
    found = {}
    for index, function in page.fns.items():
        triggers = frozenset(component for component, _ in function.targets if component is not None)
        if not triggers:
            continue  # of the page itself, such as its end
        if not function.queue:
            raise ValueError(f"{function.name} goes round the queue. Leave out queue=False.")
        for component in function.inputs:
            if not isinstance(component, tuple(_READERS)):
                raise ValueError(f"{function.name} takes a {type(component).__name__}, which no reader is for.")
        found[index] = Function(index, triggers, function.inputs, str(function.concurrency_id))
    return found


class Messages:
    """Reads what visitors ask for.

    Args:
        page: whose functions they are.
        is_here: whether a path is of a file that was sent to the page or is the page's own.
        limits: of a message.
    """

    def __init__(self, page: gr.Blocks, is_here: Callable[[str], bool], limits: Limits):
        self.page, self.is_here, self.limits = page, is_here, limits
        self.functions = open_functions(page)

    def read(self, raw: bytes) -> Message:
        """Understand a message.

        Raises:
            NotTaken: when it is none of this page's (400), or calls a function that is not open (404).
        """
        try:
            if sum(map(raw.count, (b"[", b"{", b","))) > VALUES:  # before each takes many times its byte
                raise ValueError(f"more than {VALUES} values")
            content = json.loads(raw.decode("utf-8"))
            content = content if isinstance(content, dict) else {}
        except (ValueError, RecursionError):  # a number of thousands of digits is a ValueError
            content = {}
        data, key = content.get("data"), content.get("session_hash")
        if content.keys() - FIELDS or not isinstance(data, list) or content.get("event_data") is not None:
            raise _no_message()
        if not isinstance(key, str) or not re.fullmatch(KEY, key):
            raise _no_message()
        function = self.functions.get(_whole(content.get("fn_index")))
        trigger = _whole(content.get("trigger_id"))
        if function is None or trigger not in function.triggers:
            raise NotTaken(404, "There is no such function.")
        if len(data) != len(function.inputs):
            raise _no_message()
        read = [self._value(component, value) for component, value in zip(function.inputs, data)]
        message = {"data": read, "fn_index": function.index, "trigger_id": trigger, "session_hash": key}
        return Message(key, function, json.dumps(message).encode())

    def check_line(self, message: Message, address: str):
        """Refuse what would take more than one visitor's share of the queue.

        Raises:
            NotTaken: when the visit has a lesson there already, or too much of it or of its address waits (429).
        """
        events = list(self.page._queue.event_ids_to_events.values())
        own = [event for event in events if event.session_hash == message.key]
        lessons = [event for event in own if event.fn._id == message.function.index and self._is_lesson(message)]
        if lessons:
            raise NotTaken(429, "A lesson of yours waits or is running already. Wait until it is done.", 10)
        same = [event for event in events if event.request and address_of(event.request.scope) == address]
        if len(own) >= WAITING_EACH or len(same) >= WAITING_ADDRESS:
            raise NotTaken(429, "Too much is waiting in line for you already. Try again when it is done.", 10)

    def _is_lesson(self, message: Message) -> bool:
        return message.function.line == LESSONS

    def _value(self, component, value):
        if value is None:
            return None
        read = next(reader for kind, reader in _READERS.items() if isinstance(component, kind))
        return read(self, component, value)

    def _text(self, component, value) -> str:
        if not isinstance(value, str) or len(value) > TEXT or not value.isascii() and not _is_utf8(value):
            raise _no_message()
        return value

    def _row(self, component, value) -> int:
        row = _whole(value)
        if row is None or not 0 <= row < len(component.samples):
            raise _no_message()
        return row

    def _files(self, component, value):
        single = isinstance(component, gr.Image)
        entries = [value] if single else value
        if not isinstance(entries, list) or len(entries) > 2 * self.limits.most_images:  # how many, the desk explains
            raise _no_message()
        paths = [entry.get("path") if isinstance(entry, dict) else None for entry in entries]
        if not all(isinstance(path, str) and self.is_here(path) for path in paths):
            raise NotTaken(400, "Only uploaded files are taken, and they go after a while. Upload them again.")
        read = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]
        return read[0] if single else read


LESSONS = "teaching"
"""The line of lessons: one runs at a time."""

_READERS = {
    gr.Dropdown: Messages._text,
    gr.Textbox: Messages._text,
    gr.Dataset: Messages._row,
    gr.Image: Messages._files,
    gr.File: Messages._files,
}


def listener(query: bytes) -> bytes:
    """Whose answers are asked for: nothing else of the query goes on.

    Raises:
        NotTaken: where that is no visit (400).
    """
    found = re.fullmatch(f"session_hash=({KEY})", query.decode("latin-1"))
    if not found:
        raise _no_message()
    return query


def _no_message() -> NotTaken:
    return NotTaken(400, "That is no message of this page. Reload it, and try again.")


def _whole(value) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
