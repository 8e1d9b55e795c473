"""What `ollama-tune doctor` finds, and how it tries things that may hang or crash: in a process of its own.

Run as a module this file is that process: it reads one `module:function` a line, calls it without arguments
and answers each with one line of JSON. Whatever else is printed there goes nowhere.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from queue import SimpleQueue
from typing import Any, Literal

from ollama_tune.core.text import one_line

State = Literal["ok", "warn", "fail"]

START_SECONDS = 15.0
"""What Python's own start may take on a slow disk, beside the first trial's limit."""
LAST_WORDS = 4000


@dataclass(frozen=True)
class Check:
    """One line of the doctor: what was found, and what to do about it where it is not `ok`.

    `warn` limits something or may surprise, `fail` is what does not work. Who tries leaves group and name
    empty where the trial's are meant.
    """

    state: State
    found: str
    fix: str = ""
    name: str = ""
    group: str = ""


@dataclass(frozen=True)
class Trial:
    """Something to try: `target` is `module:function`, which returns checks and may hang or crash.

    `limit` in seconds; `fix` is said where it gave no answer; `needs` names the trial before it without
    which it cannot work.
    """

    group: str
    name: str
    target: str
    limit: float = 5.0
    fix: str = "Report this, with the output of `ollama-tune doctor --json`."
    needs: str = ""


def ok(found: str, name: str = "") -> Check:
    """All is well."""
    return Check("ok", found, "", name)


def warn(found: str, fix: str, name: str = "") -> Check:
    """It works, with a limit that one should know."""
    return Check("warn", found, fix, name)


def fail(found: str, fix: str, name: str = "") -> Check:
    """It does not work."""
    return Check("fail", found, fix, name)


class Part:
    """Trials one after the other in a process of their own, which is started anew after a crash or a hang.

    `settings` are put into the environment of that process.
    """

    def __init__(self, trials: Sequence[Trial], settings: Mapping[str, str] | None = None) -> None:
        self._trials = trials
        self._environment = os.environ | dict(settings or {})
        self._found: SimpleQueue[Check | None] = SimpleQueue()
        self._child: Child | None = None
        self._stopped = False
        self.trying = ""
        self._thread = threading.Thread(target=self._work, name="doctor", daemon=True)
        self._thread.start()

    def checks(self, tell: Callable[[str], None]) -> Iterator[Check]:
        """The checks as they come; `tell` gets the name of the trial that is waited for."""
        while True:
            if self._found.empty():
                tell(self.trying)
            check = self._found.get()
            if check is None:
                return
            yield check

    def stop(self) -> None:
        """End it wherever it is; what hangs in the kernel is left behind."""
        self._stopped = True
        if self._child is not None:
            self._child.kill()
        self._thread.join(2.0)

    def _work(self) -> None:
        failed: set[str] = set()
        try:
            for trial in self._trials:
                if self._stopped:
                    break
                self.trying = trial.name
                checks = self._skipped(trial) if trial.needs in failed else self._try(trial)
                if trial.needs in failed or any(check.state == "fail" for check in checks[:1]):
                    failed.add(trial.name)
                for check in checks:
                    named = replace(check, group=trial.group, name=check.name or trial.name)
                    self._found.put(named)
        finally:
            if self._child is not None:
                self._child.end()
            self._found.put(None)

    def _skipped(self, trial: Trial) -> list[Check]:
        return [warn(f"not tried, for {trial.needs} does not work here", f"Mend {trial.needs} first.")]

    def _try(self, trial: Trial) -> list[Check]:
        begun = START_SECONDS if self._child is None else 0.0
        self._child = self._child or Child(self._environment)
        if self._stopped:
            self._child.kill()
        answer = self._child.ask(trial.target, trial.limit + begun)
        if isinstance(answer, str):
            self._child.end()
            self._child = None
            return [fail(answer, trial.fix)]
        return answer


class Child:
    """The process, as its parent sees it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._rest = b""
        self._said = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=dict(environment),
            bufsize=0,
            start_new_session=True,
        )

    def ask(self, target: str, limit: float) -> list[Check] | str:
        """The checks of a target, or a sentence about why there are none within so many seconds."""
        assert self._process.stdin is not None
        self._said = self._log_size()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(target.encode() + b"\n")
        line = self._line(time.monotonic() + limit)
        if line is None:
            return f"no answer within {limit:.0f} s"
        if not line:
            return self._death()
        answer = json.loads(line)
        return str(answer) if isinstance(answer, str) else [Check(**each) for each in answer]

    def _line(self, deadline: float) -> bytes | None:
        """The next line; empty when the process has ended, None when there is none in time."""
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                return None
            data = self._process.stdout.read(65536)
            if not data:
                return b""
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _death(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        status = self._process.poll()
        how = "the trial's process was ended from outside"
        if status is not None and status < 0:
            how = f"crashed with {signal.Signals(-status).name}"
        elif status:
            how = f"ended its process with status {status}"
        self._log.seek(max(self._log_size() - LAST_WORDS, self._said))
        words = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return f"{how} ({one_line(words[-1], 100)})" if words else how

    def _log_size(self) -> int:
        """Bytes of the log; the place in it is shared with the process, so it is not moved."""
        return os.fstat(self._log.fileno()).st_size

    def kill(self) -> None:
        """Kill it and all that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """The same, and let go of it; one that does not die is left to the kernel."""
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        for stream in (self._process.stdin, self._process.stdout, self._log):
            assert stream is not None
            stream.close()


def _main() -> None:
    """The child: whatever libraries print on standard output goes to standard error."""
    ours = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        os.write(ours, json.dumps(_answer(line.strip())).encode() + b"\n")


def _answer(target: str) -> list[dict[str, Any]] | str:
    module, _, function = target.partition(":")
    try:
        checks: Iterable[Check] = getattr(importlib.import_module(module), function)()
        return [asdict(check) for check in checks]
    except Exception as error:
        return one_line(f"{type(error).__name__}: {error}", 160)


if __name__ == "__main__":
    _main()
