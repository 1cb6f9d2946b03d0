"""Items prepared in a thread: all, in order, a few ahead, with errors and early ends on either side."""

import threading
import time

import pytest

from smope_hf.data.background import in_background


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "smope-prepare"]


def wait_until(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within five seconds")


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not threads()


@pytest.mark.parametrize("ahead", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 20])
def test_all_items_come_in_order(count, ahead):
    assert list(in_background((number for number in range(count)), ahead)) == list(range(count))


def test_items_are_prepared_in_another_thread_while_one_is_in_use_and_no_more_than_allowed():
    prepared = []

    def prepare():
        for number in range(10):
            prepared.append((number, threading.current_thread()))
            yield number

    items = in_background(prepare(), ahead=2)
    assert next(items) == 0
    wait_until(lambda: len(prepared) == 4)  # one in use, two waiting, one in the making
    time.sleep(0.05)
    assert len(prepared) == 4 and threading.current_thread() not in [thread for _, thread in prepared]
    assert list(items) == list(range(1, 10))


def test_an_error_comes_where_its_item_would_have_come():
    def prepare():
        yield from range(3)
        raise KeyError("broken")

    items = in_background(prepare())
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="broken"):
        next(items)


@pytest.mark.parametrize("taken", [1, 3])
@pytest.mark.parametrize("ahead", [1, 2])
def test_stopping_early_stops_the_thread_and_closes_what_prepares(taken, ahead):
    closed = []

    def prepare():
        try:
            yield from range(1000)
        finally:
            closed.append(threading.current_thread().name)

    with pytest.raises(RuntimeError, match="enough"):
        for item in in_background(prepare(), ahead):
            if item == taken - 1:
                raise RuntimeError("enough")
    wait_until(lambda: not threads())
    assert closed == ["smope-prepare"]


def test_an_error_after_an_early_stop_is_nobodys():
    items = in_background((1 / (3 - number) for number in range(5)), ahead=1)
    next(items)
    items.close()
    assert not threads()
