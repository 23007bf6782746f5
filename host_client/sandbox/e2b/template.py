"""The template: the image that sandboxes start from, built by E2B of our Dockerfile. Needs neither Node nor Docker.

What is built is this installation: the runner's package as it is imported here, with the Dockerfile and the pins that
came with it, so that a host and its sandboxes are of one version.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agent_runner import contract
from host_client.errors import ConfigurationError, SandboxError

from ._connection import api_params
from ._sandbox import DEFAULT_TEMPLATE

if TYPE_CHECKING:
    from e2b import BuildInfo, LogEntry

CPU_COUNT = 2
MEMORY_MB = 2048

DOCKERFILE = "e2b.Dockerfile"
KEPT_LINES = 20
"""Lines of the log that go into the error of a build that fails."""


class TemplateBuildError(SandboxError):
    """The template could not be built; ``log`` holds the last lines of what the failing step said."""

    def __init__(self, message: str, log: tuple[str, ...]) -> None:
        super().__init__(message)
        self.log = log


@dataclass(frozen=True, kw_only=True)
class TemplateOptions:
    """What to build, and how large its sandboxes are: ``memory_mb`` is even, as E2B wants it."""

    name: str = DEFAULT_TEMPLATE
    tags: tuple[str, ...] = ()
    cpu_count: int = CPU_COUNT
    memory_mb: int = MEMORY_MB
    use_cache: bool = True

    def __post_init__(self) -> None:
        if self.cpu_count < 1:
            raise ConfigurationError("cpu_count takes a whole number above 0")
        if self.memory_mb < 128 or self.memory_mb % 2:
            raise ConfigurationError("memory_mb takes an even number of 128 or more")


class BuiltTemplate(NamedTuple):
    """What E2B calls what was built."""

    name: str
    template_id: str
    build_id: str
    tags: tuple[str, ...]


class LogLine(NamedTuple):
    """A line of the build's log; ``level`` is debug, info, warn or error."""

    level: str
    text: str


OnLog = Callable[[LogLine], None]


async def build_template(options: TemplateOptions, environ: Mapping[str, str], on_log: OnLog) -> BuiltTemplate:
    """Build the template and wait until it is ready; raise `TemplateBuildError` or another `SandboxError`."""
    from e2b import AsyncTemplate, BuildException, LogEntryEnd  # 0.5 s, and only here

    from ._failures import Translated

    require_key(environ)
    last: deque[str] = deque(maxlen=KEPT_LINES)

    def heard(entry: LogEntry) -> None:
        if isinstance(entry, LogEntryEnd):
            return  # the SDK's own, also of a build that failed
        last.append(entry.message)
        on_log(LogLine(entry.level, entry.message))

    with build_context() as context, Translated():
        template = AsyncTemplate(file_context_path=str(context)).from_dockerfile((context / DOCKERFILE).read_text())
        try:
            built: BuildInfo = await AsyncTemplate.build(
                template,
                options.name,
                tags=list(options.tags),
                cpu_count=options.cpu_count,
                memory_mb=options.memory_mb,
                skip_cache=not options.use_cache,
                on_build_logs=heard,
                **api_params(environ),
            )
        except BuildException as error:
            raise TemplateBuildError(f"E2B could not build the template: {error}", tuple(last)) from error
    return BuiltTemplate(built.name, built.template_id, built.build_id, tuple(built.tags))


def require_key(environ: Mapping[str, str]) -> None:
    """Raise `ConfigurationError` if there is no key to ask E2B with."""
    if not environ.get("E2B_API_KEY"):
        raise ConfigurationError("E2B_API_KEY is not set: make a key at https://e2b.dev/dashboard?tab=keys")


@contextmanager
def build_context() -> Generator[Path]:
    """Lay out what the Dockerfile copies, in a directory of its own that lives as long as the block."""
    files = image_files()
    with tempfile.TemporaryDirectory(prefix="sandspan-template-") as folder:
        context = Path(folder)
        (context / "template").mkdir()
        shutil.copy(files / "requirements.txt", context / "template")
        shutil.copy(files / DOCKERFILE, context)
        package = Path(contract.__file__).parents[1]
        shutil.copytree(package, context / "agent_runner", ignore=shutil.ignore_patterns("__pycache__"))
        yield context


def image_files() -> Path:
    """Return the directory of the Dockerfile and its pins: in a wheel part of the package, in a checkout beside it."""
    package = Path(__file__).parents[2]
    for folder in (package / "template", package.parent / "template"):
        if (folder / DOCKERFILE).is_file():
            return folder
    raise ConfigurationError(f"{DOCKERFILE} is missing from {package}: install sandspan again")
