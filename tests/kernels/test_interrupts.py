"""Signals during a threaded call: later calls stay correct, whatever the handler raised."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from seqssm_kernels.cpu import threads

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
ROUNDS = 50

# Announces each round on stdout, works until a signal arrives, then checks a call of every kind against the results
# that it had at the start.
CHILD = """
import signal, sys, threading, torch
from seqssm_kernels import causal_conv1d, selective_scan, ssd_scan

torch.set_num_threads(2)
g = torch.Generator().manual_seed(0)
x, z = torch.randn(2, 4, 700, 96, generator=g)
dt, B, C = torch.rand(4, 700, 96, generator=g), *torch.randn(2, 4, 700, 8, generator=g)
leaves = [x, dt, -torch.rand(96, 8, generator=g), B, C, torch.randn(96, 4, generator=g)]
leaves = [t.requires_grad_() for t in leaves]

def scan(grad):
    with torch.set_grad_enabled(grad):
        out = selective_scan(*leaves[:5], z=z)
    return [out.detach(), *torch.autograd.grad(out, leaves[:5], z)] if grad else [out]

def convolution(grad):
    with torch.set_grad_enabled(grad):
        out = causal_conv1d(leaves[0], leaves[5], activation="silu")
    return [out.detach(), *torch.autograd.grad(out, [leaves[0], leaves[5]], z)] if grad else [out]

def ssd(grad):  # 2 heads of 48, in one group
    with torch.set_grad_enabled(grad):
        u, step, gate = (t.unflatten(2, (2, -1)) for t in (leaves[0], leaves[1], z))
        of_b, of_c = (t.unsqueeze(2) for t in leaves[3:5])
        out = ssd_scan(u, step[..., 0], leaves[2][:2, 0], of_b, of_c, z=gate).flatten(2)
    return [out.detach(), *torch.autograd.grad(out, leaves[:5], z)] if grad else [out]

calls = [(f, grad) for f in (scan, convolution, ssd) for grad in (False, True)]
expected = [f(grad) for f, grad in calls]
assert any(t.name == "seqssm-scan" for t in threading.enumerate()), "the calls are too small for threads"
kind = sys.argv[1]

class Stop(Exception):
    pass

def handler(number, frame):
    if kind == "scanning handler":
        assert torch.equal(scan(False)[0], expected[0][0])
    raise Stop

if kind != "SIGINT":
    signal.signal(signal.SIGTERM, handler)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)

def check():
    for (f, grad), wanted in zip(calls, expected):
        for found, right in zip(f(grad), wanted, strict=True):
            assert torch.equal(found, right), "a call after an interruption is wrong"

for i in range(int(sys.argv[2])):
    f, grad = calls[i % len(calls)]
    try:
        print("ready", flush=True)
        while True:
            f(grad)
    except (KeyboardInterrupt, Stop):
        pass
    while True:
        try:
            check()
            break
        except (KeyboardInterrupt, Stop):  # a second signal of the same round
            pass
print("done", flush=True)
"""


@pytest.mark.parametrize(
    "kind",
    [
        "SIGINT",
        *(pytest.param(kind, marks=pytest.mark.long) for kind in ("raising handler", "scanning handler", "twice")),
    ],
)
def test_calls_after_an_interruption_are_correct(kind):
    rng = random.Random(kind)
    number = signal.SIGINT if kind == "SIGINT" else signal.SIGTERM
    command = [sys.executable, "-c", CHILD, kind, str(ROUNDS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}  # unbuffered: select sees every line
    with subprocess.Popen(command, env=environment, **pipes) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            lines, wait = 0, 180.0  # the first line comes after imports and compilation
            while select.select([child.stdout], [], [], wait)[0]:
                if child.stdout.readline() != b"ready\n":
                    break
                lines, wait = lines + 1, 60.0
                time.sleep(rng.uniform(0, 0.02))
                child.send_signal(number)
                if kind == "twice":
                    time.sleep(rng.uniform(0, 1e-4))
                    child.send_signal(number)
            else:
                pytest.fail(f"the child did not come back in round {lines}")
            assert child.wait(60) == 0, child.stderr.read().decode()
            assert lines == ROUNDS
        finally:
            child.kill()


# --- the pool itself


def test_an_error_in_a_task_reaches_the_caller_and_ends_the_call():
    pool, ran = threads.Pool(2), []

    def bad() -> None:
        time.sleep(0.01)
        raise ZeroDivisionError

    for parts in ([lambda: None, bad], [bad, lambda: None], [bad, bad, bad]):
        with pytest.raises(ZeroDivisionError):
            pool.run(parts)
    pool.run([lambda i=i: ran.append(i) for i in range(20)])
    assert sorted(ran) == list(range(20))
    pool.stop()


def test_an_interrupted_call_waits_for_its_running_tasks():
    """Whatever is raised, and however often, no task of the call still runs after the call has ended."""
    pool, running = threads.Pool(1), []

    def slow() -> None:
        running.append(1)
        time.sleep(0.2)
        running.append(2)

    def own() -> None:
        while not running:
            time.sleep(0.001)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.run([own, slow, slow])
    assert running[-1] == 2
    before = len(running)
    time.sleep(0.3)
    assert len(running) == before  # the third task was never started
    pool.stop()


def test_a_task_owns_its_memory_while_it_runs():
    """If a call's waiting is interrupted too, the tasks that still run keep their memory."""
    gone, pool = [], threads.Pool(1)

    class Memory:
        def __del__(self) -> None:
            gone.append(1)

    started, go_on, memory = Event(), Event(), Memory()

    def part(memory: Memory) -> None:
        started.set()
        go_on.wait(10)
        assert not gone

    call = threads._Parts([lambda memory=memory: part(memory)])
    pool.calls.put(call)
    del memory
    started.wait(10)
    call.waiting.clear()  # as an interrupted caller does before it returns
    assert not call.over()
    assert not gone
    go_on.set()
    call.wait()
    assert not call.errors
    pool.stop()


def test_a_busy_pool_is_not_waited_for():
    pool, free = threads.Pool(1), Event()
    with ThreadPoolExecutor(1) as other:
        first = other.submit(pool.run, [lambda: None, lambda: free.wait(20)])
        ran: list[int] = []
        pool.run([lambda: ran.append(0), lambda: ran.append(1)])
        assert ran == [0, 1]
        free.set()
        first.result()
    pool.stop()


def test_a_pool_without_threads_still_works(monkeypatch):
    def refuse(self: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads.threading.Thread, "start", refuse)
    ran: list[int] = []
    pool = threads.Pool(3)
    assert pool.size == 0
    pool.run([lambda i=i: ran.append(i) for i in range(4)])
    assert sorted(ran) == [0, 1, 2, 3]


FORKING = """
import os, sys, threading, torch
from seqssm_kernels import selective_scan
torch.set_num_threads(2)
x, B = torch.rand(4, 700, 96), torch.rand(4, 700, 8)
A = -torch.rand(96, 8)
expected, stop = selective_scan(x, x, A, B, B), threading.Event()

def work():
    while not stop.is_set():
        assert torch.equal(selective_scan(x, x, A, B, B), expected)

other = threading.Thread(target=work)
other.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(2)
        os._exit(0 if all(torch.equal(selective_scan(x, x, A, B, B), expected) for _ in range(3)) else 1)
    if os.waitpid(child, 0)[1]:
        os._exit(2)
stop.set()
other.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_while_another_thread_scans():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", FORKING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
