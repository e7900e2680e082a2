"""pipeline/training/stop_signals.py: the first signal asks to stop, the second ends."""

import os
import signal
import threading

import pytest

from slm_fn.pipeline.training.stop_signals import catch_stop_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends(number, capfd):
    before = signal.getsignal(number)
    with catch_stop_signals() as is_stop_requested:
        assert not is_stop_requested()
        os.kill(os.getpid(), number)
        assert is_stop_requested()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before
    assert capfd.readouterr().err.count("stopping after this step") == 1


def test_other_threads_install_no_handlers():
    requested = []

    def train():
        with catch_stop_signals() as is_stop_requested:
            requested.append(is_stop_requested())

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert requested == [False]
