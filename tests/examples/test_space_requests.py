"""What the page does not take, over HTTP: bodies that are too large or too deep, other functions, a second lesson."""

import gzip
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from space import CHUNKED, JOIN, JSON, PNG, UPLOAD, Clock, Measured, chunked, form, form_headers, served

from limits import Limits  # isort: skip

MIB = 2**20
PROMISED_SECONDS, PROMISED_BYTES = 2.0, 200 * MIB


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with served(tmp_path_factory.mktemp("page"), replace(Limits(), address_bytes=2**31), Clock()) as page:
        yield page


def sixty_megabytes(start: bytes, piece: bytes):
    yield start
    for _ in range(60 * MIB // len(piece)):
        yield piece


PIECE = b"[]," * (2**16 // 3)
LENGTH = str(60 * MIB)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("path", [JOIN, UPLOAD, "/gradio_api/run/upload", "/", "/nowhere", "/gradio_api/call/teach"])
@pytest.mark.parametrize(
    "headers", [{**JSON, "Content-Length": LENGTH}, {**JSON, **CHUNKED}], ids=["stated", "chunked"]
)
def test_sixty_megabytes_cost_no_memory_and_no_time(page, path, headers):
    pieces = sixty_megabytes(b'{"data":[', PIECE)
    with Measured() as measured:
        answer = page.ask("POST", path, chunked(pieces) if "Transfer-Encoding" in headers else pieces, headers)
    assert answer.status in (400, 404, 405, 411, 413)
    assert measured.seconds <= PROMISED_SECONDS and measured.bytes <= PROMISED_BYTES, vars(measured)
    assert page.ask("GET", "/").status == 200


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from /proc")
def test_an_upload_of_sixty_megabytes_is_not_kept_in_memory(page):
    """Taken or not: as one file of a form it is refused at ten, as seven images it is written down."""
    start = form(PNG).split(PNG)[0] + PNG
    with Measured() as one:
        answer = page.ask(
            "POST", UPLOAD, sixty_megabytes(start, b"x" * 2**16), form_headers(**{"Content-Length": LENGTH})
        )
    assert answer.status == 413 and one.seconds <= PROMISED_SECONDS and one.bytes <= PROMISED_BYTES
    image = PNG + bytes(9 * MIB)
    with Measured() as seven:
        assert page.send(*[image] * 7).status == 200
    assert seven.bytes <= PROMISED_BYTES + 2 * 63 * MIB  # the test itself holds the form, and a copy while it is made


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"null", b"5", b'"a"', b"\xff\xfe", b"[" * 200_000, b'{"a":' * 40_000, b"9" * 200_000,
    b'{"data":[' + b"[]," * 80_000 + b"0]}", b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"data":[' + b"1" * 5000 + b'],"fn_index":1}', b'{"data":[NaN,Infinity],"fn_index":1}', b"{}" * 1000,
], ids=lambda body: repr(body[:12]) + str(len(body)))  # fmt: skip
def test_what_is_no_message_is_refused(page, body):
    with Measured() as measured:
        assert page.ask("POST", JOIN, body, JSON).status == 400
    assert measured.seconds <= PROMISED_SECONDS and measured.bytes <= PROMISED_BYTES, vars(measured)


def test_a_body_is_no_longer_than_it_says_and_not_compressed(page):
    message = json.dumps({"data": [None], "session_hash": "visitor1"}).encode()
    packed = gzip.compress(b'{"data":[' + b"[]," * 10 * MIB + b"0]}")
    for coding in ("gzip", "br", "deflate", "gzip, gzip", "x"):
        assert page.ask("POST", JOIN, packed, {**JSON, "Content-Encoding": coding}).status in (413, 415), coding
    assert page.ask("POST", JOIN, message, {**JSON, "Content-Length": "5"}).status == 400  # cut off after five
    for length in ("-1", "1e3", "abc", "0x10", "9" * 30):
        assert page.ask("POST", JOIN, message, {**JSON, "Content-Length": length}).status in (400, 413), length
    assert page.ask("POST", JOIN, message, {**JSON, "Content-Length": str(2**18 + 1)}).status == 413
    assert page.ask("GET", "/theme.css", message).status == 413  # nothing has a body that needs none
    twice = {**JSON, "Content-Length": str(len(message)), "content-length": "1"}
    assert page.ask("POST", JOIN, message, twice).status == 400


def test_a_body_that_does_not_come_is_given_up(page, monkeypatch):
    monkeypatch.setitem(__import__("guard").PATIENCE, "join", 0.3)
    monkeypatch.setitem(__import__("guard").PATIENCE, "upload", 0.3)
    for path, headers in ((JOIN, JSON), (UPLOAD, form_headers())):
        headers = {**headers, "Content-Length": "1000"}
        before = set(os.listdir(page.files.folder))
        assert page.ask("POST", path, form(PNG)[:-30], headers).status == 408
        assert set(os.listdir(page.files.folder)) == before


# ---------------------------------------------------------------------- functions


def test_only_the_functions_of_the_page_are_called(page):
    """A name that gradio does not show, or calls private, is none that it would not call."""
    numbers = {function.name: index for index, function in page.page.fns.items()}
    assert {"look", "teach", "choose", "end"} <= set(numbers)
    data = ["digits", "task-01", "nothing", None]
    assert page.join("look", data).status == 200
    assert page.join("choose", ["digits"]).status == 200
    message = {"data": [], "session_hash": "visitor1", "fn_index": numbers["end"], "trigger_id": None}
    for trigger in (None, 0, 1, page.page.fns[numbers["look"]].targets[0][0]):
        assert page.post({**message, "trigger_id": trigger}).status == 404
    for index in (-1, 99, None, "1", 1.0, True, [1], {"a": 1}, 2**70):
        assert page.join("look", data, fn_index=index).status in (400, 404), index
    for trigger in (None, 0, -1, "4", True, 2**70):
        assert page.join("look", data, trigger_id=trigger).status == 404, trigger
    for name in ("look", "teach", "choose", "end", "lambda", "predict", "load_example"):
        for route in ("run", "api", "call", "call/v2"):
            assert page.post({"data": data, "session_hash": "visitor1"}, f"/gradio_api/{route}/{name}").status == 404


def test_a_message_holds_what_the_function_takes_and_nothing_else(page):
    data = ["digits", "task-01", "nothing", None]
    for changed in (
        {"event_data": {"a": 1}}, {"batched": True}, {"simple_format": True}, {"event_id": "a"}, {"oauth_token": "a"},
        {"request": {}}, {"__class__": "a"}, {"session_hash": None}, {"session_hash": 5}, {"session_hash": "../.."},
        {"session_hash": "x" * 5000}, {"data": None}, {"data": {}}, {"data": data[:3]}, {"data": [*data, None]},
        {"data": [["digits"], *data[1:]]}, {"data": [{"a": 1}, *data[1:]]}, {"data": ["x" * 5000, *data[1:]]},
        {"data": ["\ud800", *data[1:]]}, {"data": [5, *data[1:]]}, {"data": [*data[:3], "a.png"]},
        {"data": [*data[:3], [{"path": "a.png"}]]}, {"data": [*data[:3], {"path": ["a"]}]},
        {"data": [*data[:3], {"url": "http://127.0.0.1:9/a.png"}]},
    ):  # fmt: skip
        assert page.join("look", data, **changed).status == 400, changed
    row = next(index for index, one in page.page.fns.items() if one.targets[0][1] == "click" and len(one.inputs) == 1)
    trigger = page.page.fns[row].targets[0][0]
    for value, status in ((0, 200), (1, 400), (-1, 400), ("0", 400), (True, 400), (2**70, 400)):
        message = {"data": [value], "fn_index": row, "trigger_id": trigger, "session_hash": "visitor1"}
        assert page.post(message).status == status, value


@pytest.mark.parametrize("path", [
    "http://127.0.0.1:9/a.png", " HTTPS://a/b", "//127.0.0.1/a", "ftp://a/b", "file:///etc/passwd", "/etc/passwd",
    "/proc/self/environ", "../../etc/passwd", "", "a" * 3000, "data:image/png;base64,AA==", "\\\\host\\share",
])  # fmt: skip
def test_nothing_is_fetched_or_read_that_a_visitor_names(page, path):
    entry = {"path": path, "url": path, "orig_name": path, "meta": {"_type": "gradio.FileData"}}
    assert page.join("look", ["digits", "task-01", "nothing", entry]).status == 400
    assert page.join("teach", ["digits", "task-01", [entry] * 4, "eight"]).status == 400
    escaped = json.dumps(entry).replace("http", "\\u0068ttp").replace("/", "\\/")
    message = json.dumps(
        {"data": ["digits", "task-01", "nothing", "ENTRY"], "fn_index": 1, "session_hash": "visitor1"}
    )
    assert page.post(message.replace('"ENTRY"', escaped).encode()).status in (400, 404)


# ---------------------------------------------------------------------- the queue


def test_six_lessons_at_once_are_one_after_the_other(page, monkeypatch):
    running, most, done, lock = [0], [0], [], threading.Lock()

    def slow(*arguments, **options):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.2)
        with lock:
            running[0] -= 1
            done.append(arguments[2])
        raise __import__("limits").Refused("Enough.")

    monkeypatch.setattr("desk.teach", slow)
    monkeypatch.setattr(page.desk.models, "get", lambda place: type("Loaded", (), {"class_names": [], "tasks": []}))
    monkeypatch.setattr(Limits, "read_image", lambda self, path: path)
    keys = [f"student{number}" for number in range(6)]
    lessons = {key: [{"path": path} for path in page.send(*[PNG] * 4).json()] for key in keys}
    for key in keys:
        assert page.join("teach", ["digits", "task-01", lessons[key], key], key).status == 200
        again = page.join("teach", ["digits", "task-01", lessons[key], key], key)
        assert again.status == 429 and b"A lesson of yours waits or is running already" in again.body
    for _ in range(100):
        if len(done) == 6:
            break
        time.sleep(0.1)
    assert sorted(done) == keys and most == [1]


def test_lessons_that_go_round_the_queue_are_one_at_a_time_too(page, monkeypatch):
    """The desk holds it too, whoever calls it."""
    started, go_on, outcomes = threading.Event(), threading.Event(), []

    def slow(*arguments, **options):
        started.set()
        go_on.wait(20)
        raise __import__("limits").Refused("Enough.")

    monkeypatch.setattr("desk.teach", slow)
    monkeypatch.setattr(page.desk.models, "get", lambda place: type("Loaded", (), {"class_names": [], "tasks": []}))
    monkeypatch.setattr(Limits, "read_image", lambda self, path: path)
    sent = {number: page.send(*[PNG] * 4).json() for number in range(6)}

    def learn(number):
        try:
            page.desk.learn(f"direct{number}", "digits", "task-01", sent[number], "a", lambda *_: None)
        except ValueError as refusal:
            outcomes.append(str(refusal))

    threads = [threading.Thread(target=learn, args=[number]) for number in range(6)]
    threads[0].start()
    assert started.wait(10)
    for thread in threads[1:]:
        thread.start()
    for thread in threads[1:]:
        thread.join(10)
    assert len(outcomes) == 5 and all("Somebody else's lesson is running" in text for text in outcomes)
    go_on.set()
    threads[0].join(10)
    assert outcomes[5] == "Enough."


def test_one_visitor_does_not_fill_the_queue(page, monkeypatch):
    hold = threading.Event()
    monkeypatch.setattr(page.desk, "revisions", lambda *_: hold.wait(20) or {})
    found = [page.join("choose", ["digits"], f"filling{number // 9}").status for number in range(40)]
    hold.set()
    assert found.count(200) == 24 + 1 and set(found) == {200, 429}  # eight of each visit, 25 of the address
    assert found[8] == 429 and found[9] == 200
