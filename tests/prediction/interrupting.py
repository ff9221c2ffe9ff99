"""A prediction in a subprocess that gets Ctrl-C, for the tests of the domains."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path


def interrupted_in_a_subprocess(words: list[str], output: Path) -> str:
    """Start ``seqssm predict``, send SIGINT once the first batch is written, and return what it printed on stderr.

    Args:
        words: arguments of the command, without the output.
        output: the output table; its partial results are beside it.
    """
    argv = [sys.executable, "-m", "seqssm", "predict", *words, "--output", str(output), "--batch-size", "1"]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = output.with_name(f".{output.name}.parts")
    for _ in range(2400):
        time.sleep(0.05)
        if child.poll() is not None or any(part.stat().st_size for part in folder.glob("*.part")):
            break
    child.send_signal(signal.SIGINT)
    printed = child.communicate(timeout=120)
    assert child.returncode == 130, printed
    assert not output.exists()
    assert printed[0] == ""
    return printed[1]
