"""The first signal asks, the second stops, and the handlers go back to their owner."""

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from conadv.trainer.run import signals
from conadv.trainer.run.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_asks_second_stops(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and stop.reason == number.name
        os.kill(os.getpid(), number)  # within a moment: the same request
        monkeypatch.setattr(signals, "TOGETHER", -1.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_signals_that_only_ask(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "TOGETHER", -1.0)
    before = signal.signal(number, signal.SIG_DFL)  # a suite without a terminal may ignore SIGHUP
    try:
        with StopRequest() as stop:
            for _ in range(3):
                os.kill(os.getpid(), number)
            assert stop.reason == number.name
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_two_signals_count_from_when_they_came() -> None:
    """Python runs handlers between two lines: after a long step both, or the second late."""
    code = textwrap.dedent("""
        import ctypes, os, signal, sys, threading, time
        from conadv.trainer.run import signals
        signals.TOGETHER = 0.5
        def send():
            for pause in map(float, sys.argv[1:]):
                time.sleep(pause)
                os.kill(os.getpid(), signal.SIGTERM)
        with signals.StopRequest() as stop:
            threading.Thread(target=send).start()
            while not stop.requested:
                time.sleep(0.01)
            for _ in range(4):
                ctypes.CDLL(None).sleep(1)  # a step: no Python until it has ended
            print(stop.reason)
    """)
    for pauses, at_once in (((0.2, 0.2), False), ((0.2, 1.5), True)):
        command = [sys.executable, "-c", code, *map(str, pauses)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ("KeyboardInterrupt" in done.stderr) == at_once, done.stderr
        assert ("SIGTERM" in done.stdout) == (not at_once)


def test_the_first_signal_is_answered_at_once() -> None:
    """While a step is under way, which Python does not interrupt."""
    code = textwrap.dedent("""
        import ctypes, os, signal, threading
        from conadv.trainer.run.signals import StopRequest
        def answer(name):
            print(name, stop.requested, flush=True)
            raise OSError("the terminal is gone")
        with StopRequest() as stop:
            stop.heard = answer
            for pause in (0.2, 0.4):
                threading.Timer(pause, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            # Another thread gets them, so the call below lasts.
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            ctypes.CDLL(None).sleep(2)
            print(stop.reason)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["SIGUSR1 False", "SIGUSR1"] and not done.stderr


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
