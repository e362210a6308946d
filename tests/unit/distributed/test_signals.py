"""SIGINT and SIGTERM."""

from __future__ import annotations

import signal
import subprocess
import sys


def test_second_signal_exits_immediately():
    code = (
        "import os, signal\nfrom robobench.distributed import signals\n"
        "with signals.handle_signals(), signals.defer_signals():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    print('never')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT and done.stdout == "still here\n"
    assert done.stderr == "\nsaving checkpoint; press Ctrl-C again to exit immediately\n"
