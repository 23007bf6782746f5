"""Lists the files of a folder, finds what changed in them, and unpacks a folder that was sent to a sandbox.

It is also sent to sandboxes, as source, and runs there as the agent's account: it imports the standard library alone.
Paths are bytes, relative to the folder, with ``/``. In JSON each byte is one character, as latin-1 has it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Generator, Iterable
from typing import Any, BinaryIO, NamedTuple

FILE, PROGRAM, LINK = 0o100644, 0o100755, 0o120000
"""Modes as git has them."""

CACHES = (
    *("node_modules/", ".venv/", "venv/", ".tox/", ".nox/"),
    *("__pycache__/", "*.pyc", ".pytest_cache/", ".mypy_cache/", ".ruff_cache/", ".DS_Store"),
)
"""Patterns of what tools make again; it does not come back from a sandbox."""

NEUTRAL = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
"""Options of git that keep it from running programs which a repository's configuration names."""

_AGENT = ("-c", "user.name=agent", "-c", "user.email=agent@sandbox.invalid", "-c", "commit.gpgSign=false")
_LIST_SECONDS = 120
_MAX_NAMED = 1000
"""Maximum number of left out files that are named."""


class Entry(NamedTuple):
    """A regular file or symbolic link of a folder; ``mode`` as git has it, ``size`` in bytes."""

    path: bytes
    mode: int
    size: int


class Listing(NamedTuple):
    """The content of a folder: files, empty folders, and what could not be listed, with the reason."""

    files: list[Entry]
    folders: list[bytes]
    left_out: list[tuple[bytes, str]]


Ignored = Callable[[bytes], set[bytes]]
"""Returns the ignored paths in a folder, which begins with the folder itself and ``/`` unless it is the listed one."""


def list_folder(root: bytes, ignored: Ignored, max_files: int | None = None) -> Listing:
    """List a folder without ``.git`` and without ignored paths; stop after ``max_files`` files.

    Repositories within it, such as submodules, are asked for by themselves. No symbolic link is followed.
    """
    found = Listing([], [], [])
    folders = [(b"", ignored(b""))]
    while folders and (max_files is None or len(found.files) <= max_files):
        folder, names = folders.pop()
        try:
            with os.scandir(os.path.join(root, folder) or b".") as scanned:
                inner = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            if not folder:
                raise
            if isinstance(error, FileNotFoundError):  # it was removed since its name was read
                continue
            found.left_out.append((folder + b"/", error.strerror or "unreadable"))
            continue
        if not inner and folder:
            found.folders.append(folder)
        for entry in inner:
            path = os.path.join(folder, entry.name)
            if entry.name.lower() in (b".git", b"git~1") or path in names:
                continue
            if entry.is_dir(follow_symlinks=False):
                is_repository = os.path.lexists(os.path.join(root, path, b".git"))
                folders.append((path, ignored(path) if is_repository else names))
            else:
                _list_file(found, path, entry)
    return found


def _list_file(found: Listing, path: bytes, entry: os.DirEntry[bytes]) -> None:
    try:
        about = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # the same
        return
    if entry.is_symlink():
        found.files.append(Entry(path, LINK, about.st_size))
    elif stat.S_ISREG(about.st_mode):
        found.files.append(Entry(path, PROGRAM if about.st_mode & 0o100 else FILE, about.st_size))
    else:
        found.left_out.append((path, "is no regular file"))


def read(root: bytes, entry: Entry, max_bytes: int) -> bytes:
    """Return the content of a file, at most one byte more than ``max_bytes``, or the target of a link."""
    path = os.path.join(root, entry.path)
    if entry.mode == LINK:
        return os.readlink(path)
    # A file that a link or a pipe has replaced since it was listed is not opened.
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "is no regular file any more")
        return file.read(max_bytes + 1)


def digest(mode: int, content: bytes) -> str:
    """Return the digest of a file, which differs where mode or content do."""
    return hashlib.sha256(b"%o " % mode + content).hexdigest()


def leads_out(path: bytes, target: bytes) -> bool:
    """Return whether a symbolic link may lead out of the folder: a ``..`` behind a name may follow another link."""
    parts = [part for part in target.split(b"/") if part not in (b"", b".")]
    up = next((number for number, part in enumerate(parts) if part != b".."), len(parts))
    return os.path.isabs(target) or up > path.count(b"/") or b".." in parts[up:]


# -- git's rules ------------------------------------------------------------------------------------------------------


Repository = Callable[[bytes], contextlib.AbstractContextManager[dict[str, str]]]
"""Yields the variables with which git finds the repository of a folder, which is given relative to the root."""


def ignored_by(root: bytes, folder: bytes, repository: Repository) -> set[bytes]:
    """Return the paths in a folder that its repository ignores, and untracked ones that those around it ignore."""
    listed = ["git", *NEUTRAL, "ls-files", "-z", "--others", "--exclude-standard"]
    where = os.path.join(root, folder) or b"."
    with repository(folder) as env:
        found = _paths(folder, run([*listed, "--ignored", "--directory"], where, env))
        others = _paths(folder, run(listed, where, env)) if folder else set[bytes]()
    for outer in (b"", *parents(folder)) if others else ():
        if not outer or os.path.lexists(os.path.join(root, outer, b".git")):
            inner = [path[len(outer) + 1 :] if outer else path for path in others]
            with repository(outer) as env:
                found |= {os.path.join(outer, path) for path in ignored_of(os.path.join(root, outer), inner, env)}
    return found


def _paths(folder: bytes, listed: bytes) -> set[bytes]:
    return {os.path.join(folder, path.rstrip(b"/")) for path in listed.split(b"\0") if path}


def ignored_of(root: bytes, paths: Iterable[bytes], env: dict[str, str]) -> set[bytes]:
    """Return which paths in a repository's folder git ignores; files within submodules count as well."""
    return {path for path in _check_ignore(root, paths, env) if path}


def _check_ignore(root: bytes, paths: Iterable[bytes], env: dict[str, str], *options: str) -> list[bytes]:
    names = b"".join(path + b"\0" for path in paths)
    command = ["git", *NEUTRAL, "check-ignore", "-z", "--stdin", "--no-index", *options]
    try:
        return run(command, root or b".", env, names).split(b"\0")
    except ChildProcessError as error:
        if error.errno == 1:  # none of them
            return []
        raise


def parents(path: bytes) -> Iterable[bytes]:
    """Yield the folders above a path, the outermost first."""
    parts = path.split(b"/")
    return (b"/".join(parts[:count]) for count in range(1, len(parts)))


@contextlib.contextmanager
def repository_beside(
    root: bytes, folder: bytes, patterns: Iterable[bytes], tracked: Iterable[bytes]
) -> Generator[dict[str, str]]:
    """Make a temporary repository for a folder without touching the folder; yield the variables that git needs.

    ``tracked`` are paths, from the root, that git must not ignore.
    """
    with tempfile.TemporaryDirectory(prefix="sandspan-git-") as directory:
        tree = os.path.abspath(os.path.join(root, folder))
        env = {**bare_environment(), "GIT_DIR": directory, "GIT_WORK_TREE": os.fsdecode(tree)}
        run(["git", "init", "-q", "--template="], tree, env)
        os.makedirs(os.path.join(directory, "info"), exist_ok=True)
        with open(os.path.join(directory, "info", "exclude"), "wb") as exclude:
            exclude.write(b"".join(pattern + b"\n" for pattern in patterns))
        with open(os.path.join(directory, "info", "attributes"), "wb") as attributes:
            attributes.write(b"* -text -ident -filter -working-tree-encoding\n")  # files stay as they are
        prefix = folder + b"/" if folder else b""
        inner = [path[len(prefix) :] for path in tracked if path.startswith(prefix)]
        # Only the names count; no object of this id is ever read.
        lines = b"".join(b"100644 " + b"1" * 40 + b"\t" + path + b"\0" for path in inner)
        run(["git", "update-index", "-z", "--index-info"], tree, env, lines)
        yield env


def bare_environment() -> dict[str, str]:
    """Return an environment in which git reads no configuration of an account or of the machine."""
    passed = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    fixed = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_ATTR_NOSYSTEM": "1", "LC_ALL": "C"}
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", **passed, "HOME": "/nonexistent", **fixed}


def run(command: list[str], cwd: bytes, env: dict[str, str], stdin: bytes = b"") -> bytes:
    """Run a command and return its stdout; raise `ChildProcessError` with its exit code and last words if it fails."""
    try:
        done = subprocess.run(command, cwd=cwd, env=env, input=stdin, capture_output=True, timeout=_LIST_SECONDS)
    except subprocess.TimeoutExpired:
        raise OSError(0, f"git took more than {_LIST_SECONDS} seconds") from None
    if done.returncode != 0:
        words = done.stderr.decode("utf-8", "replace").strip()[-300:]
        raise ChildProcessError(done.returncode, words or f"git ended with code {done.returncode}")
    return done.stdout


# -- in the sandbox ---------------------------------------------------------------------------------------------------


def receive(archive: BinaryIO, patterns: list[bytes]) -> None:
    """Unpack a folder into the current directory, which must be empty, and commit it to a new repository."""
    if present := os.listdir("."):
        sys.exit(f"the working directory is not empty, it has {present[0][:80]!r}: give no cwd, or another template")
    with tarfile.open(fileobj=archive, mode="r|gz", encoding="utf-8", errors="surrogateescape") as tar:
        tar.extraction_filter = lambda member, _: member  # the host made it; Python 3.14 would refuse some links
        tar.extractall()  # noqa: S202 - the same
    env = bare_environment()
    git = ["git", *NEUTRAL, *_AGENT]
    run([*git, "init", "-q", "-b", "main", "--template="], b".", env)
    for setting in ("user.name=agent", "user.email=agent@sandbox.invalid"):
        run(["git", "config", *setting.split("=")], b".", env)
    os.makedirs(".git/info", exist_ok=True)
    with open(".git/info/exclude", "wb") as exclude:
        exclude.write(b"".join(pattern + b"\n" for pattern in patterns))
    run([*git, "add", "--all", "--force"], b".", env)
    run([*git, "commit", "-q", "--allow-empty", "-m", "The folder as it came from the host"], b".", env)


def collect(request: Any, out: BinaryIO) -> None:
    """Write what changed in the current directory since a state: a line of JSON, then the contents of its files.

    ``request``: ``base``, the digest of each path; ``folders``, the empty ones; ``patterns`` of ignored paths; and
    ``max_files`` and ``max_bytes`` of what is written. Where there is more, the smallest new files come first.
    """
    base = {path.encode("latin-1"): known for path, known in request["base"].items()}
    patterns = [pattern.encode("latin-1") for pattern in request["patterns"]]
    names: set[bytes] = set()

    def ignored(folder: bytes) -> set[bytes]:
        found = ignored_by(b".", folder, lambda each: repository_beside(b".", each, patterns, base))
        names.update(found)
        return found

    listing = list_folder(b".", ignored)
    changed, left_out = _read_changed(listing, base, request["max_files"], request["max_bytes"])
    rules = {entry.path for entry, _ in changed if os.path.basename(entry.path) == b".gitignore"}
    if rules:
        left_out += [(path, "is ignored by a .gitignore that changed") for path in _hidden(names, rules)]
    present = {entry.path for entry in listing.files} | {path for path, _ in listing.left_out}
    hidden = tuple(path for path, _ in listing.left_out if path.endswith(b"/"))
    deleted = [path for path in base if path not in present and not path.startswith(hidden)]
    known_folders = {path.encode("latin-1") for path in request["folders"]}
    head = {
        "deleted": [path.decode("latin-1") for path in deleted],
        "changed": [(entry.path.decode("latin-1"), entry.mode, len(content)) for entry, content in changed],
        "folders": [path.decode("latin-1") for path in listing.folders if path not in known_folders],
        "left_out": [(path.decode("latin-1"), reason) for path, reason in left_out[:_MAX_NAMED]],
        "left_out_count": len(left_out),
    }
    out.write(json.dumps(head).encode() + b"\n")
    for _, content in changed:
        out.write(content)


def _hidden(names: set[bytes], rules: set[bytes]) -> list[bytes]:
    """Return which ignored paths are ignored because of the files ``rules``."""
    with repository_beside(b".", b"", (), ()) as env:
        fields = _check_ignore(b".", sorted(names), env, "--verbose")
    return [path for source, path in zip(fields[::4], fields[3::4], strict=False) if source in rules]


def _read_changed(
    listing: Listing, base: dict[bytes, str], max_files: int, max_bytes: int
) -> tuple[list[tuple[Entry, bytes]], list[tuple[bytes, str]]]:
    """Return the files that are not as in ``base``, with their contents, and what is left out of them."""
    changed: list[tuple[Entry, bytes]] = []
    left_out, size = list(listing.left_out), 0
    for entry in sorted(listing.files, key=lambda entry: (entry.path not in base, entry.size)):
        try:
            content = read(b".", entry, max_bytes)
        except OSError as error:
            left_out.append((entry.path, error.strerror or "unreadable"))
            continue
        if digest(entry.mode, content) == base.get(entry.path):
            continue
        if entry.mode == LINK and leads_out(entry.path, content):
            left_out.append((entry.path, "is a link that leads out of the folder"))
        elif len(content) + size > max_bytes or len(changed) >= max_files:
            left_out.append((entry.path, "is more than the limit of changes allows"))
        else:
            changed.append((entry, content))
            size += len(content)
    return changed, left_out


def _leave(_number: int, _frame: Any) -> None:
    """Leave by an exception, so that temporary folders are removed."""
    sys.exit("the program was terminated")


def main(task: str) -> None:
    """Carry out a task of the host: ``receive`` or ``collect``; its data is on stdin."""
    signal.signal(signal.SIGTERM, _leave)
    try:
        head = json.loads(sys.stdin.buffer.readline())
        if task == "receive":
            receive(sys.stdin.buffer, [pattern.encode("latin-1") for pattern in head["patterns"]])
        else:
            collect(head, sys.stdout.buffer)
            sys.stdout.buffer.flush()
    except FileNotFoundError as error:
        sys.exit("git is missing in the sandbox" if error.filename == "git" else str(error))
    except (OSError, tarfile.TarError) as error:
        sys.exit(getattr(error, "strerror", None) or str(error))
