"""Guard: a call that may read, but not run, load, write elsewhere, hang or take much memory.

An audit hook (PEP 578) sees what Python does, a limit on the address space what it allocates, and a
timer of processor time when it hangs: no load of the machine makes that one false.
"""

import encodings.cp437  # noqa: F401  (zipfile's, so that it is there before the guard)
import linecache
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_LIBRARY = "/src/bozzetto/"
SECONDS = 5.0  # of processor time for one input
ROOM = 768 << 20  # bytes of address space beyond what the process has

_LOADING = ("import", "exec", "marshal.loads", "pickle.find_class")
_RUNNING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty")
_REACHING = ("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request")
_CHANGING = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod",
    "os.chown", "os.truncate", "os.utime", "os.setxattr", "shutil.rmtree",
)  # fmt: skip
_FOLDERS = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2}  # where the folder's descriptor stands
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Trespass(BaseException):
    """Something that the guarded call must not do; no `except Exception` hides it."""


@dataclass
class _Watch:
    """What is watched now."""

    inside: tuple[str, ...] = ()
    modules: frozenset[str] = frozenset()
    seen: list[str] = field(default_factory=list)

    def told(self, event: str, args: tuple[Any, ...]) -> str | None:
        """What is wrong with an event, if anything."""
        if event == "import":
            return None if args[0].split(".")[0] in self.modules else f"import of {args[0]}"
        if self.modules and event in ("exec", "marshal.loads"):
            return None  # the user named a module: it may run
        if event in _LOADING or event in _RUNNING or event.startswith(_REACHING):
            return f"{event} {args!r:.120}"
        if event == "ctypes.dlopen" and args[0] is not None:
            return f"{event} {args!r:.120}"
        if event == "open" and isinstance(args[0], str | bytes) and (args[2] or 0) & _WRITING:
            return self._outside(event, args[0])
        if event in _CHANGING:
            own = args[1:2] if event == "os.symlink" else args[:2]  # a link's target is not touched
            fd = args[_FOLDERS[event]] if event in _FOLDERS else -1
            base = "" if fd < 0 else os.readlink(f"/proc/self/fd/{fd}") + "/"  # noqa: PTH115
            found = [
                self._outside(event, base + os.fsdecode(a))
                for a in own
                if isinstance(a, str | bytes)
            ]
            return next((f for f in found if f), None)
        return None

    def _outside(self, event: str, path: str | bytes) -> str | None:
        real = os.path.realpath(os.path.dirname(os.path.abspath(os.fsdecode(path))))  # noqa: PTH100, PTH120
        if os.fsdecode(path) == os.devnull or f"{real}/".startswith(self.inside):
            return None
        return f"{event} of {os.fsdecode(path)!r}"


_current: _Watch | None = None
_installed = False


def _audit(event: str, args: tuple[Any, ...]) -> None:
    global _current
    watch = _current
    if watch is None:
        return
    _current = None  # what follows raises events of its own
    try:
        wrong = watch.told(event, args)
    finally:
        _current = watch
    if wrong is not None:
        watch.seen.append(wrong)
        raise Trespass(wrong)


def _late(*_: object) -> None:
    raise Trespass(f"more than {SECONDS} s of processor time")


def address_space() -> int:
    """Bytes that the process has mapped."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@contextmanager
def guard(*folders: Path, modules: frozenset[str] = frozenset()) -> Iterator[None]:
    """Only inside of the folders may be written, only the modules may be imported.

    Raises:
        Trespass: for anything else, even if the guarded code caught it.
    """
    global _current, _installed
    if not _installed:
        sys.addaudithook(_audit)
        _installed = True
    watch = _Watch(tuple(f"{folder.resolve()}/" for folder in folders), modules)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGPROF, _late)
    room = address_space() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (room if hard < 0 else min(room, hard), hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    _current = watch
    try:
        yield
    finally:
        _current = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before)
    if watch.seen:
        raise Trespass(watch.seen[0])


def fault(
    read: Callable[[], object], *folders: Path, modules: frozenset[str] = frozenset()
) -> tuple[str, str | None]:
    """How a guarded call ended: ("accepted" or "refused", None), or what was wrong with the way.

    It may return, or raise a ValueError, a TypeError or an OSError by a statement of the library's
    own, that says what it is about.
    """
    try:
        with guard(*folders, modules=modules):
            read()
    except (ValueError, TypeError, OSError) as error:
        return "refused", None if _clear(error) else _told("unclear", error)
    except (Exception, Trespass) as error:
        return "failed", _told("failed", error)
    return "accepted", None


def _clear(error: BaseException) -> bool:
    """Whether the library raised it, by a statement that says something."""
    if isinstance(error, OSError) and (error.filename or "No such file" in str(error)):
        return True  # the system's own: it names the file
    file, line = _frames(error)[-1]
    raised = linecache.getline(file, line).lstrip().startswith("raise ")
    return _LIBRARY in file and raised and len(str(error)) >= 12


def _frames(error: BaseException) -> list[tuple[str, int]]:
    found, trace = [], error.__traceback__
    while trace is not None:
        found.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    return found


def _told(how: str, error: BaseException) -> str:
    ours = [f"{Path(file).name}:{line}" for file, line in _frames(error) if _LIBRARY in file]
    return f"{how} {type(error).__name__}: {error!s:.300} at {ours[-1] if ours else '?'}"
