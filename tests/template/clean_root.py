"""Run the Dockerfile's steps in a clean Debian, apply E2B's later changes, and check the result against attacks.

    python -m tests.template.clean_root [FOLDER]

This is a script, not a test: it needs root, debootstrap and package archives, and takes minutes. The steps are those
that the E2B SDK makes of the Dockerfile. It prints seconds and sizes for each; the exit code is 0 if all checks pass.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2b import Template

from host_client.sandbox.e2b._layout import Layout

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILE = REPOSITORY / "template" / "e2b.Dockerfile"
SUITE = "trixie"

# The commands of E2B's builder as root before the first step and after the last one (e2b-dev/infra: provisioning of
# the base phase, the user phase and the finalize phase), as far as they affect the rights of accounts.
BEFORE = """
    apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
        sudo openssh-server curl ca-certificates git adduser >/dev/null
    passwd -d root
    printf 'PermitRootLogin yes\\nPermitEmptyPasswords yes\\nPasswordAuthentication yes\\n' >> /etc/ssh/sshd_config
    adduser --disabled-password --gecos '' user && usermod -aG sudo user && passwd -d user
    echo 'user ALL=(ALL:ALL) NOPASSWD: ALL' >> /etc/sudoers
"""
AFTER = """
    usermod -aG sudo user && passwd -d user
    echo 'user ALL=(ALL:ALL) NOPASSWD: ALL' >> /etc/sudoers
    chown -R user:user /home/user
    chmod 777 -R /usr/local
    mkdir -p /code && chmod 777 -R /code
"""
# The older builder (CLI 1.x) also provisions after the Dockerfile's steps.
PROVISION_AGAIN = """
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --reinstall sudo openssh-server >/dev/null
"""


@dataclass
class Root:
    """A root directory with the settings that the steps have made so far."""

    path: Path
    env: dict[str, str]
    user: str = "root"
    workdir: str = "/"
    copied: dict[str, str] = field(default_factory=dict[str, str])

    def run(self, command: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command as E2B does: in a login shell, in the current directory, as an account with all its groups."""
        user = user or self.user
        home = "/root" if user == "root" else f"/home/{user}"
        ids = ["chroot", str(self.path), "/usr/bin/id", "-G", user]
        groups = subprocess.run(ids, check=True, capture_output=True, text=True)
        accounts = ["--userspec", user, "--groups", ",".join(groups.stdout.split())]
        # envd passes a PATH that begins with /usr/local.
        script = f"cd {self.workdir} && {command}"
        return subprocess.run(
            ["chroot", *accounts, str(self.path), "/bin/bash", "-l", "-c", script],
            env={
                **self.env,
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": home,
                "USER": user,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=1800,
        )

    def must(self, command: str, user: str | None = None) -> str:
        """Run a command and return its stdout; exit if it fails."""
        done = self.run(command, user)
        if done.returncode:
            sys.exit(f"failed with {done.returncode}: {command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return done.stdout

    def size(self) -> int:
        """Return the size of the root directory in megabytes."""
        bound = f"--exclude={self.path}/run/host"
        done = subprocess.run(["du", "-xsm", bound, self.path], check=True, capture_output=True, text=True)
        return int(done.stdout.split()[0])


def main() -> int:
    """Run all steps, apply the changes of E2B's finalize phase, and run the checks; return the exit code."""
    with ExitStack() as stack:
        folder = sys.argv[1] if len(sys.argv) > 1 else stack.enter_context(tempfile.TemporaryDirectory())
        path = Path(folder) / "root"
        timed("debootstrap", lambda: debootstrap(path))
        root = stack.enter_context(mounted(path))
        timed("E2B's provisioning", lambda: root.must(BEFORE))
        print(f"{'':>8}   {root.size()} MB")
        for step in steps():
            timed(title(step), lambda step=step: take(root, step))
            print(f"{'':>8}   {root.size()} MB")
        print(f"ends as {root.user} in {root.workdir}; image environment {sorted(root.copied) or 'empty'}")
        print(root.must(DOCTOR, "root"))
        root.must(AFTER, "root")
        failed = verdicts(root, "after E2B's finalize phase")
        root.must(PROVISION_AGAIN, "root")
        return int(failed + verdicts(root, "after provisioning once more") > 0)


def debootstrap(path: Path) -> None:
    """Install a minimal Debian, as the base image has it."""
    subprocess.run(["debootstrap", "--variant=minbase", SUITE, str(path)], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def mounted(path: Path) -> Generator[Root]:
    """Mount /proc, /dev/shm and the files of this machine's pip configuration; unmount them at the end."""
    shutil.copy("/etc/resolv.conf", path / "etc/resolv.conf")
    points: list[Path] = []

    def mount(target: Path, *args: str) -> None:
        target.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", *args, str(target)], check=True)
        points.append(target)

    try:
        mount(path / "proc", "-t", "proc", "proc")
        mount(path / "dev/shm", "-t", "tmpfs", "tmpfs")
        env = {"LANG": "C.UTF-8", **pip_settings(path / "run/host", mount)}
        yield Root(path, env)
    finally:
        for point in reversed(points):
            subprocess.run(["umount", str(point)], check=True)


def pip_settings(folder: Path, mount: Callable[..., None]) -> dict[str, str]:
    """Return this machine's pip configuration as variables, with the files and folders in it mounted below a folder."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True)
    settings: dict[str, str] = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        words = [inside(word, folder, mount) for word in value.strip("'").split()]
        settings[f"PIP_{name.rpartition('.')[2].upper().replace('-', '_')}"] = " ".join(words)
    return settings


def inside(word: str, folder: Path, mount: Callable[..., None]) -> str:
    """Mount a path of pip's configuration below a folder; return its name inside the root, or another word as it is."""
    plain = word.removeprefix("file://")
    if not plain.startswith("/") or not Path(plain).exists():
        return word
    source = Path(plain)
    target = folder / plain.lstrip("/")
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    else:
        # The files of a package index are beside its folder `simple`.
        base = source.parent if source.name == "simple" else source
        mount(folder / str(base).lstrip("/"), "--bind", "-o", "ro", str(base))
    return word[: len(word) - len(plain)] + f"/run/host{plain}"


def steps() -> list[dict[str, Any]]:
    """Return the build steps that the SDK sends for the Dockerfile."""
    template = Template(file_context_path=str(REPOSITORY)).from_dockerfile(DOCKERFILE.read_text())
    return json.loads(Template.to_json(template))["steps"]


def title(step: Mapping[str, Any]) -> str:
    """Return a step as one line of at most 100 characters."""
    return f"{step['type']} {' '.join(step['args'])}"[:100]


def take(root: Root, step: Mapping[str, Any]) -> None:
    """Execute one build step."""
    args: list[str] = step["args"]
    match step["type"]:
        case "RUN":
            root.must(*args)
        case "COPY":
            copy(root, args[0], args[1])
        case "USER":
            root.user = args[0]
        case "WORKDIR":
            root.must(f"mkdir -p {args[0]}", "root")
            root.workdir = args[0]
        case "ENV":
            root.env.update(zip(args[::2], args[1::2], strict=True))
            root.copied.update(zip(args[::2], args[1::2], strict=True))
        case other:
            sys.exit(f"a step of a kind that this script does not know: {other}")


def copy(root: Root, source: str, target: str) -> None:
    """Copy a file, or the content of a directory, to a path in the root directory; root owns the copy."""
    origin, destination = REPOSITORY / source, root.path / target.lstrip("/")
    destination.parent.mkdir(parents=True, exist_ok=True)
    if origin.is_dir():
        shutil.copytree(origin, destination, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(origin, destination)
    subprocess.run(["chown", "-R", "root:root", str(destination)], check=True)


PYTHON = "/opt/sandspan/bin/python -I"
DOCTOR = f"{PYTHON} -m agent_runner doctor --image user"

PLANT = (
    "for name in id run-parts python3 git bash sh; do "
    "printf '#!/bin/sh\\ntouch /usr/local/planted-$(/usr/bin/id -u)\\n' > /usr/local/bin/$name; "
    "chmod 755 /usr/local/bin/$name; done"
)
UNCOMPILED = (
    "import sys, py_compile, importlib.util as u, pathlib; "
    "[sys.exit(f'not compiled: {p}') for root in sys.argv[1:] for p in pathlib.Path(root).rglob('*.py') "
    "if not pathlib.Path(u.cache_from_source(str(p))).exists()]"
)
SUCCEEDS = (
    ("doctor passes", "root", DOCTOR),
    ("every module is compiled", "root", f'{PYTHON} -c "{UNCOMPILED}" /opt/sandspan/lib /opt/sandspan/runner'),
    ("user can run the runner's own --version", "user", f"{PYTHON} -m agent_runner --version"),
    ("user can run the CLI", "user", "/opt/sandspan/lib/python3.*/site-packages/claude_agent_sdk/_bundled/claude -v"),
    ("user can work in the working directory", "user", f"touch {Layout().work}/made"),
    ("user can make /usr/local hostile", "user", PLANT),
    ("a shell of root runs nothing of it", "root", "id -u >/dev/null; git --version; ! ls /usr/local/planted-0"),
    ("sshd admits nobody", "root", "mkdir -p /run/sshd; sshd -T | grep -ix 'denyusers \\*'"),
    ("sshd takes no empty password", "root", "sshd -T | grep -ix 'permitemptypasswords no'"),
)
DENIED = "Permission denied"
PACKAGES = "$(echo /opt/sandspan/lib/python3.*/site-packages)"
FAILS = (
    ("user becomes root by sudo", "sudo -n true", DENIED),
    ("user becomes root by su and an empty password", "echo | su -c true", DENIED),
    ("user reads the CLI", f"cat {PACKAGES}/claude_agent_sdk/_bundled/claude", DENIED),
    ("user looks at journals", "ls /var/lib/sandspan", DENIED),
    ("user changes the runner", "touch /opt/sandspan/runner/agent_runner/_run.py", DENIED),
    ("user adds a package", f"touch {PACKAGES}/sitecustomize.py", DENIED),
    ("user changes Python", "touch $(readlink -f /opt/sandspan/bin/python)", DENIED),
    ("user changes Python's library", "touch /usr/lib/python3.*/json/__init__.py", DENIED),
    ("user finds a program that lends its rights", "find / -xdev -perm /6000 -type f 2>/dev/null | grep .", ""),
)
"""Commands that must fail as `user`, with a part of the error message."""


def verdicts(root: Root, when: str) -> int:
    """Run all checks and print their results; return the number of failed ones."""
    print(f"\n{when}:")
    failed = 0
    for name, user, command in SUCCEEDS:
        done = root.run(command, user)
        failed += verdict(done.returncode == 0, name, done)
    for name, command, said in FAILS:
        done = root.run(command, "user")
        failed += verdict(done.returncode != 0 and said in done.stderr, f"not: {name}", done)
    return failed


def verdict(holds: bool, name: str, done: subprocess.CompletedProcess[str]) -> int:
    """Print the result of one check; return 1 if it failed, else 0."""
    last = (done.stdout.strip() or done.stderr.strip()).split("\n")[-1][:100]
    print(f"{'✓' if holds else '✗'} {name}  ({last})")
    return int(not holds)


def timed(name: str, work: Callable[[], object]) -> None:
    """Run a function and print its duration in seconds."""
    began = time.monotonic()
    work()
    print(f"{time.monotonic() - began:7.1f} s {name}", flush=True)


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("this needs root, for chroot and mount")
    sys.exit(main())
