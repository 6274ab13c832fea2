"""What the product uses of time, chance, threads, sockets and files without the simulator's help.

Whatever is not listed here fails `test_escapes.py`: replace it in the simulation (`clocks.py`,
`loop.py`, `network.py`, `disk.py`), or list it with the reason why it may escape.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

_MODULES = frozenset(
    {
        *(
            "time",
            "random",
            "secrets",
            "uuid",
            "threading",
            "_thread",
            "subprocess",
            "socket",
            "select",
        ),
        *("os", "shutil", "signal", "tempfile", "fcntl", "resource", "sqlite3", "multiprocessing"),
        *("concurrent.futures", "psutil", "selectors", "glob", "mmap"),
    }
)
_HARMLESS = frozenset(
    {
        *("os.environ", "os.fspath", "os.path", "os.PathLike", "os.stat_result", "socket.gaierror"),
        *(
            "socket.socket",
            "sqlite3.Connection",
            "sqlite3.Cursor",
            "sqlite3.Error",
            "signal.Signals",
        ),
        *("concurrent.futures.Future", "time.struct_time", "psutil.Error", "psutil.Process"),
    }
)
"""Types, errors and names: using them does nothing."""
_METHODS = frozenset(
    {
        *(
            "read_text",
            "read_bytes",
            "write_text",
            "write_bytes",
            "mkdir",
            "unlink",
            "iterdir",
            "touch",
        ),
        *("is_file", "is_dir", "exists", "stat", "rename", "rmdir", "symlink_to", "chmod", "glob"),
    }
)
"""Methods of a path that reach the file system."""
_CLOCKS = frozenset({"now", "today", "utcnow"})

SIMULATED = frozenset(
    {
        *("time.time", "time.monotonic", "time.perf_counter", "time.process_time", "random.random"),
        *("concurrent.futures.ThreadPoolExecutor", "sqlite3.connect", "shutil.disk_usage"),
    }
)
"""What the simulator replaces, wherever it is used."""

NOT_RUN: Mapping[str, str] = {
    "__main__.py": "the command line and its exit status; service tests start it as a process",
    "api/setup_access.py": "the link to the set-up in the browser",
    "commands/": "the command line, the doctor, and uvicorn; service tests run them",
    "doctor/": "the checks of the doctor and the set-up",
    "runtime/restart.py": "a restart after the settings have changed in the browser",
    "runtime/threads.py": "what the doctor and the set-up wait for",
    "settings_store.py": "the settings that are changed in the browser",
    "setup/": "the set-up in the browser, before the service runs",
}
"""Parts of the product that do not run in the simulation."""

_FILES = "files of DATA_DIR, which are real ones in memory; power cuts have tests of their own"
ESCAPES: Mapping[tuple[str, str], str] = {
    ("api/pages.py", "Path.read_bytes"): "the files of the dashboard, which never change",
    ("api/pages.py", "os.stat"): "the files of the dashboard, which never change",
    ("discovery/refresh.py", "Path.rename"): "no path: a method of the catalog",
    ("health_report/mqtt.py", "threading.Thread"): "health by MQTT, which is off in the simulation",
    ("journal/repair.py", "Path.is_file"): _FILES,
    ("journal/repair.py", "Path.stat"): _FILES,
    ("main.py", "multiprocessing.parent_process"): "the application that uvicorn imports",
    ("normalize/filter.py", "Path.stat"): "the file of the filter, read at the start and polled",
    ("normalize/transforms.py", "Path.is_dir"): "the folder of transforms, read at the start",
    ("runtime/connection_errors.py", "os.strerror"): "a table of texts",
    ("runtime/environment.py", "Path.stat"): "files of secrets, read at the start",
    ("runtime/home_assistant_yaml.py", "Path.exists"): "the user's YAML, read at the start",
    ("runtime/home_assistant_yaml.py", "Path.is_dir"): "the user's YAML, read at the start",
    ("runtime/home_assistant_yaml.py", "Path.is_file"): "the user's YAML, read at the start",
    ("runtime/home_assistant_yaml.py", "os.walk"): "the user's YAML, read at the start",
    ("runtime/logging.py", "Path.mkdir"): "the log file, which the simulation does not open",
    ("runtime/logging.py", "threading.Lock"): "never contended: the work of threads runs inline",
    **{
        ("runtime/settings_file.py", name): "settings, read at the start and changed in the browser"
        for name in ("Path.is_dir", "Path.unlink", "os.access", "os.fdopen", "os.fsync", "os.open")
    },
    **{
        ("runtime/sqlite.py", name): _FILES
        for name in (
            *("Path.exists", "Path.is_file", "Path.mkdir", "Path.rename", "Path.stat"),
            *("Path.unlink", "fcntl.flock", "os.close", "os.fsync", "os.open"),
        )
    },
    **{
        ("runtime/sqlite_pages.py", name): _FILES
        for name in ("Path.stat", "os.close", "os.fstat", "os.open", "os.pread")
    },
    ("runtime/supervisor.py", "os.getpid"): "SIGTERM to this process; the world overrides it",
    ("runtime/supervisor.py", "os.kill"): "SIGTERM to this process; the world overrides it",
    ("runtime/tls.py", "Path.stat"): "client certificates; TLS is not simulated",
    ("sinks/embedded.py", "Path.exists"): _FILES,
    ("sinks/embedded.py", "Path.touch"): _FILES,
    ("sinks/embedded.py", "Path.unlink"): _FILES,
}
"""What escapes the simulation, and why it may."""


def unlisted(folder: Path) -> list[tuple[str, str]]:
    """Return the uses that are neither simulated nor listed."""
    return [
        (name, used)
        for name, used in uses(folder)
        if used not in SIMULATED
        and (name, used) not in ESCAPES
        and not name.startswith(tuple(NOT_RUN))
    ]


def uses(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the file and the name of each direct use below a folder."""
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        for used in sorted(set(_uses_in(ast.parse(path.read_text())))):
            yield name, used


def _uses_in(tree: ast.AST) -> Iterator[str]:
    names = _imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and (full := names.get(node.id)) and "." in full:
            yield from _unless_harmless(full)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield from {"open"} & {node.func.id}
        if not isinstance(node, ast.Attribute):
            continue
        owner = names.get(node.value.id) if isinstance(node.value, ast.Name) else None
        if owner is not None:
            yield from _unless_harmless(f"{owner}.{node.attr}")
        elif isinstance(node.value, ast.Name) and node.value.id in {"datetime", "date"}:
            if node.attr in _CLOCKS:
                yield f"{node.value.id}.{node.attr}"
        elif node.attr in _METHODS:
            yield f"Path.{node.attr}"


def _imported(tree: ast.AST) -> Mapping[str, str]:
    """Return the full name of each local name that stands for a module, or a part of one."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {each.asname or each.name: each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in _MODULES:
            names |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    return {name: full for name, full in names.items() if full.startswith(tuple(_MODULES))}


def _unless_harmless(full: str) -> Iterator[str]:
    is_constant = full.rsplit(".", 1)[-1].isupper()
    module = next((name for name in _MODULES if full.startswith(f"{name}.")), None)
    if module is not None and full not in _HARMLESS and not is_constant:
        yield full
