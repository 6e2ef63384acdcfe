"""The first signal asks, the second stops, and the handlers go back to their owner."""

import os
import signal
import threading

import pytest

from conadv.trainer.run.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_asks_second_stops(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and stop.reason == number.name
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_in_a_thread_it_only_listens_to_ask() -> None:
    seen: list[bool] = []

    def work() -> None:
        with StopRequest() as stop:
            stop.ask("test")
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
