"""Which worker of pytest-xdist runs which test; what is said of a test or a worker that failed."""

from __future__ import annotations

import contextlib
import re

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

TOGETHER = (
    "tests/broker_real/test_training.py",
    "tests/broker/test_topology.py::TestSentinel",
    "tests/broker/test_topology.py::TestCluster",
    "tests/cli/test_several_servers.py",
    "tests/report/test_looks.py",
    "tests/test_docs.py::TestReference",
    "tests/test_readme.py",
    "tests/test_tutorial.py",
)
"""Modules and classes whose tests share what takes long to make, or of which one takes long: one
worker gets all of one, and they go first."""
CONFORMANCE = (
    "tests/communicator/test_communicator.py",
    "tests/spu/test_channel.py",
    "tests/transport/test_endpoint.py",
)
"""Suites that run on every kind of broker: the tests of one on one group of servers go together."""
_ON_GROUP = re.compile(r"[\[-](sentinel|cluster)[-\]]")
_IN_ADVANCE = 2
"""A worker begins a test once it knows the next one."""


class ByTest(LoadScopeScheduling):
    """Each test goes to the worker that is free; those of `TOGETHER` go first, as one.

    `--dist loadgroup` would be the first half, but its mark is lost on pytest 9.2. Its parent
    hands out a dead worker's ended tests once more, as units of which nothing is left to run: the
    other workers then wait for ever for a next test (pytest-xdist 3.8).
    """

    def _split_scope(self, nodeid: str) -> str:
        for suite in CONFORMANCE:
            if nodeid.startswith(suite) and (group := _ON_GROUP.search(nodeid)):
                return f"{suite} on {group[1]}"
        return next((whole for whole in TOGETHER if nodeid.startswith(whole)), nodeid)

    def mark_test_complete(
        self, node: WorkerController, item_index: int, duration: float = 0
    ) -> None:
        del duration
        nodeid = self.registered_collections[node][item_index]
        self._forget(node, nodeid)
        self._reschedule(node)

    def remove_node(self, node: WorkerController) -> str | None:
        """The test that ran when `node` died, if one did; it is not run again.

        What else `node` was to run goes to the others.
        """
        units = self.assigned_work[node]
        crashed = next((nodeid for unit in units.values() for nodeid in unit), None)
        if crashed is not None:
            self._forget(node, crashed)
        del self.assigned_work[node]
        self.workqueue.update(units)
        for other in self.assigned_work:
            self._reschedule(other)
        return crashed

    def _assign_work_unit(self, node: WorkerController) -> None:
        with contextlib.suppress(OSError):  # it has just died: `remove_node` hands this out again
            super()._assign_work_unit(node)

    def _forget(self, node: WorkerController, nodeid: str) -> None:
        units = self.assigned_work[node]
        scope = self._split_scope(nodeid)
        del units[scope][nodeid]
        if not units[scope]:
            del units[scope]

    def _reschedule(self, node: WorkerController) -> None:
        if node.shutting_down or node not in self.registered_collections:
            return
        while self.workqueue and self._pending_of(self.assigned_work[node]) <= _IN_ADVANCE:
            self._assign_work_unit(node)
        if not self.workqueue:
            node.shutdown()


class TellAtOnce:
    """Says what failed as soon as it has: a run that is cut off says nothing at its end."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.ensure_newline()
            terminal.write_sep("-", f"{report.nodeid} failed")
            terminal.write_line(report.longreprtext)
