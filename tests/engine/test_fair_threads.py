"""What was worked on is freed as soon as nobody holds it."""

import gc
import threading
import time
import weakref

import pytest

from specdec.fair_threads import FairThreads


class Work:
    def __call__(self):
        return self


@pytest.fixture
def threads():
    threads = FairThreads(1, name="test")
    gc.disable()
    yield threads
    gc.enable()
    threads.shutdown()


def assert_freed(reference):
    deadline = time.monotonic() + 10
    while reference() is not None:
        assert time.monotonic() < deadline, "it takes a garbage collection"
        time.sleep(0.005)


def test_a_result_is_freed_with_its_future(threads):
    work = Work()
    future = threads.submit("caller", work)
    assert future.result(10) is work
    reference = weakref.ref(work)
    del work, future
    assert_freed(reference)


def test_what_is_cancelled_before_its_turn_is_freed_and_never_begun(threads):
    begun, may_end = threading.Event(), threading.Event()
    first = threads.submit("caller", lambda: (begun.set(), may_end.wait(10)))
    assert begun.wait(10)
    work = Work()
    future = threads.submit("caller", work)
    reference = weakref.ref(work)
    assert future.cancel()
    del work, future
    assert_freed(reference)
    may_end.set()
    assert first.result(10)
