"""What a process is doing right now, line by line: py-spy looks from outside, so it also sees a process that hangs or is stopped.
Where looking is not allowed (ptrace), the process itself writes its stack when it gets the signal that `answer` has set up."""

import faulthandler
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SECONDS = 5.0  # for py-spy
ANSWER_SECONDS = 1.0  # for the process itself
SIGNAL = signal.SIGUSR1


def dump(pid: int, log: Path) -> str:
    """The Python stack of every thread, or one line that says why there is none. log: where the process's stderr goes."""
    spy = Path(sys.executable).with_name("py-spy")
    command = [str(spy), "dump", "--nonblocking", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode == 0:
            head, found, threads = done.stdout.partition("\nThread ")  # the head repeats the whole command line
            return f"Thread {threads}" if found else head
        problem = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    return _asked(pid, log) or f"no stack: py-spy said {problem!r}, and the process did not answer"


def answer() -> None:
    """Write this process's stack to its stderr whenever it gets the signal."""
    faulthandler.register(SIGNAL, sys.stderr, all_threads=True)


def _asked(pid: int, log: Path) -> str:
    before = log.stat().st_size if log.exists() else 0
    try:
        os.kill(pid, SIGNAL)
    except ProcessLookupError:
        return ""
    deadline, size = time.monotonic() + ANSWER_SECONDS, before
    while time.monotonic() < deadline:
        time.sleep(0.05)
        now = log.stat().st_size if log.exists() else 0
        if now == size > before:
            break  # it has stopped growing
        size = now
    return log.read_bytes()[before:].decode(errors="replace") if size > before else ""


def is_stopped(pid: int) -> bool:
    """Whether the kernel holds the process stopped (SIGSTOP, or a debugger)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False
