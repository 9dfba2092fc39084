"""A process that reads HTML, PDF and Word files, and whoever asks it.

A hostile or broken file may loop, fill the memory or kill the process that parses it. So another
process does it, with a limit of time and memory; when it dies, the file is unreadable and the next
one gets a new process.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

from research_rl.envs.documents.reading import Reading, UnreadableError

_MEMORY = 3 * 2**30
"""Bytes of address space that the process may take."""


class Worker:
    """A process that reads files, one at a time; made when the first one is asked for.

    Args:
        seconds: that a file may take.

    Use it as a context: at its end the process is over.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def read(self, path: Path, kind: str) -> tuple[Reading, str]:
        """Return what a file holds, and the SHA-256 of its bytes.

        Raises:
            UnreadableError: it cannot be read, takes too long or ends the process.
        """
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"path": str(path), "kind": kind}) + "\n")
            process.stdin.flush()
            line = self._answers.get(timeout=self.seconds)
        except queue.Empty:
            self._end()
            reason = f"must be read within {self.seconds:g} s, was not; see --seconds"
            raise UnreadableError(reason) from None
        except OSError:
            line = ""
        if not line:
            self._end()
            raise UnreadableError("ended the process that read it, perhaps for want of memory")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UnreadableError(answer["error"])
        return Reading.from_row(answer["reading"]), answer["sha256"]

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._answers = queue.Queue()
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
            assert self._process.stdout is not None
            forward = (self._process.stdout, self._answers)
            threading.Thread(target=_forward, args=forward, daemon=True).start()
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                try:
                    if pipe is not None:
                        pipe.close()
                except OSError:  # what was written to it has not been read
                    pass
            self._process = None


def _forward(lines: IO[str], answers: queue.Queue[str]) -> None:
    """Pass lines on until the process is over, which an empty one says."""
    try:
        for line in lines:
            answers.put(line)
    except ValueError:  # closed meanwhile
        pass
    answers.put("")


def _serve(requests: IO[str], answers: IO[str]) -> None:
    """Answer a line for each request line."""
    from research_rl.envs.documents.rich import read_rich

    for line in requests:
        request = json.loads(line)
        try:
            data = Path(request["path"]).read_bytes()
            reading = read_rich(request["kind"], data)
            said: dict[str, Any] = {"reading": reading.to_row()}
            said["sha256"] = hashlib.sha256(data).hexdigest()
        except Exception as error:  # whatever a package raises about a file that is broken
            said = {"error": _reason(error)}
        answers.write(json.dumps(said) + "\n")
        answers.flush()


def _reason(error: Exception) -> str:
    if isinstance(error, UnreadableError):
        return str(error)
    if isinstance(error, MemoryError):
        return "needs more memory than a document may"
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _main() -> None:
    """Serve over stdin and stdout; what packages print goes nowhere."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = _MEMORY if most == resource.RLIM_INFINITY else min(_MEMORY, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    except (ImportError, ValueError, OSError):  # Windows, or a system that knows no such limit
        pass
    _serve(sys.stdin, answers)


if __name__ == "__main__":
    _main()
