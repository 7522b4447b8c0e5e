"""Runs CPython's own tests and prints one line for each: its name and how it ended.

    cpython_tests.py SECONDS as-is|warm LOCK-FILE MODULE...

Most of them say too little on a connection for it to be accelerated. With `warm`, every socketpair of the tests is made by
a name and has carried some bytes before the test gets it, and the tests that want a connected TCP pair get a warm Unix pair.
Tests that bind fixed names hold the lock file, because others like us run beside us. At its end it waits for the end of its input, so that its ledger can be read.
"""

import faulthandler
import fcntl
import itertools
import os
import socket
import sys
import unittest

from test import support

# Nothing from outside this machine, and of what takes seconds only what can meet a Unix socket.
LEFT_OUT = (
    "VSOCK",
    "NetworkConnectionBehaviourTest",
    "DefaultSelectorTestCase",  # is EpollSelectorTestCase
    "TimeoutTest.testInterruptedTimeout",
    "TimeoutTest.testTCPTimeout",
    "TimeoutTest.testUDP",
    "TCPCloserTest",
    "testWithTimeoutTriggeredSend",
    "testRecvFromIntoSmallBuffer",  # sends to a socket that the other thread may have closed already
)
ROUNDS = 12

numbers = itertools.count()
kernel_pair = socket.socketpair


def listen():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0cpython-test-%d-%d" % (os.getpid(), next(numbers)))
    listener.listen(1)
    return listener


def warm_pair(family=None, type=socket.SOCK_STREAM, proto=0):
    if family not in (None, socket.AF_UNIX) or type != socket.SOCK_STREAM or proto:
        return kernel_pair(family, type, proto)
    default = socket.getdefaulttimeout()
    socket.setdefaulttimeout(None)
    try:
        with listen() as listener:
            left = socket.socket(socket.AF_UNIX)
            left.connect(listener.getsockname())
            right = listener.accept()[0]
        for _ in range(ROUNDS):
            left.send(b"x")
            right.recv(1)
            right.send(b"y")
            left.recv(1)
    finally:
        socket.setdefaulttimeout(default)
    left.settimeout(default)
    right.settimeout(default)
    return left, right


def ask(connection):
    for _ in range(ROUNDS):
        connection.sendall(b"x")
        connection.recv(1)


def answer(connection):
    for _ in range(ROUNDS):
        connection.recv(1)
        connection.sendall(b"y")


def warm_connected_tests():
    """test_socket's base classes for tests of two connected sockets, each end in its thread."""
    from test import test_socket

    connected, mixin = test_socket.SocketConnectedTest, test_socket.ConnectedStreamTestMixin
    tcp_set_up, tcp_client_set_up = connected.setUp, connected.clientSetUp
    mixin_set_up, mixin_client_set_up = mixin.setUp, mixin.clientSetUp

    def is_tcp(test):
        return isinstance(test, test_socket.NetworkConnectionTest)

    def set_up(test):
        if is_tcp(test):
            return tcp_set_up(test)
        test.port, test.serv = 0, listen()
        test.serverExplicitReady()
        test.cli_conn = test.serv.accept()[0]
        answer(test.cli_conn)

    def client_set_up(test):
        if is_tcp(test):
            return tcp_client_set_up(test)
        test.cli = test.serv_conn = socket.socket(socket.AF_UNIX)
        test.cli.connect(test.serv.getsockname())
        ask(test.cli)

    def unix_set_up(test):
        mixin_set_up(test)
        if test.serv.family == socket.AF_UNIX:
            answer(test.cli_conn)

    def unix_client_set_up(test):
        mixin_client_set_up(test)
        if test.cli.family == socket.AF_UNIX:
            ask(test.cli)

    connected.setUp, connected.clientSetUp = set_up, client_set_up
    mixin.setUp, mixin.clientSetUp = unix_set_up, unix_client_set_up


def lock_fixed_names(path):
    from test import test_socket

    fixed = test_socket.TestLinuxAbstractNamespace
    file = open(path, "a")
    fixed.setUpClass = lambda: fcntl.flock(file, fcntl.LOCK_EX)
    fixed.tearDownClass = lambda: fcntl.flock(file, fcntl.LOCK_UN)


class Outcomes(unittest.TestResult):
    """How each test ended; what is more than a word goes to standard error."""

    def __init__(self):
        super().__init__()
        self.outcomes = {}

    def note(self, test, outcome, error=None):
        self.outcomes.setdefault(test.id(), []).append(outcome)
        if error is not None:
            print(outcome, test.id(), self._exc_info_to_string(error, test), sep="\n", file=sys.stderr)

    def addSuccess(self, test):
        self.note(test, "ok")

    def addError(self, test, error):
        self.note(test, "error", error)

    def addFailure(self, test, error):
        self.note(test, "failure", error)

    def addSkip(self, test, reason):
        self.note(test, "skipped")

    def addExpectedFailure(self, test, error):
        self.note(test, "expected failure")

    def addUnexpectedSuccess(self, test):
        self.note(test, "unexpected success")

    def addSubTest(self, test, subtest, error):
        if error is not None:
            self.note(test, "failure of a part", error)


def wanted(test):
    """The test, or the suite without what is left out; suites stay whole, because they know what a class sets up."""
    if isinstance(test, unittest.TestSuite):
        test._tests = [part for part in map(wanted, test._tests) if part is not None]
        return test
    return None if any(part in test.id() for part in LEFT_OUT) else test


def main():
    seconds, way, lock, modules = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
    faulthandler.dump_traceback_later(seconds, exit=True)
    support.use_resources, support.verbose = ["network"], 0
    if way == "warm":
        socket.socketpair = warm_pair
    if "test.test_socket" in modules:
        lock_fixed_names(lock)
        if way == "warm":
            warm_connected_tests()
    result = Outcomes()
    wanted(unittest.TestLoader().loadTestsFromNames(modules)).run(result)
    for name, outcome in sorted(result.outcomes.items()):
        print(name + ":", ", ".join(outcome))
    print("done", flush=True)
    sys.stdin.buffer.read()
    # Threads and loops that a test left running must not keep us.
    os._exit(0)


if __name__ == "__main__":
    main()
