"""Builds the template, the image that sandboxes start from, with E2B. Needs neither Node nor Docker.

The image contains this installation: the runner's package as it is imported here, with the Dockerfile and the pinned
requirements that came with it, so that a host and its sandboxes have the same version.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agent_runner import contract
from agent_runner.contract.directories import temporary_directory
from host_client.errors import ConfigurationError, SandboxError

from ._connection import api_params
from ._sandbox import DEFAULT_TEMPLATE

if TYPE_CHECKING:
    from e2b import BuildInfo, LogEntry

CPU_COUNT = 2
MEMORY_MB = 2048

DOCKERFILE = "e2b.Dockerfile"
KEPT_LINES = 20
"""Number of log lines that the error of a failed build holds."""


class TemplateBuildError(SandboxError):
    """The template could not be built; ``log`` holds the last lines of the build's log."""

    def __init__(self, message: str, log: tuple[str, ...]) -> None:
        super().__init__(message)
        self.log = log


@dataclass(frozen=True, kw_only=True)
class TemplateOptions:
    """Options of a template: its name, its tags and the size of its sandboxes; ``memory_mb`` must be even for E2B."""

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
    """The name and ids that E2B gave to a built template."""

    name: str
    template_id: str
    build_id: str
    tags: tuple[str, ...]


class LogLine(NamedTuple):
    """A line of a build's log; ``level`` is debug, info, warn or error."""

    level: str
    text: str


OnLog = Callable[[LogLine], None]


async def build_template(options: TemplateOptions, environ: Mapping[str, str], on_log: OnLog) -> BuiltTemplate:
    """Build the template and wait until it is ready; raise `TemplateBuildError` or another `SandboxError`."""
    from e2b import AsyncTemplate, BuildException, LogEntryEnd  # takes 0.5 s, needed only here

    from ._failures import Translated

    require_key(environ)
    last: deque[str] = deque(maxlen=KEPT_LINES)

    def keep(entry: LogEntry) -> None:
        if isinstance(entry, LogEntryEnd):
            return  # added by the SDK itself, also after a failed build
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
                on_build_logs=keep,
                **api_params(environ),
            )
        except BuildException as error:
            raise TemplateBuildError(f"E2B could not build the template: {error}", tuple(last)) from error
    return BuiltTemplate(built.name, built.template_id, built.build_id, tuple(built.tags))


def require_key(environ: Mapping[str, str]) -> None:
    """Raise `ConfigurationError` if the environment has no key for E2B."""
    if not environ.get("E2B_API_KEY"):
        raise ConfigurationError("E2B_API_KEY is not set: create a key at https://e2b.dev/dashboard?tab=keys")


@contextmanager
def build_context() -> Generator[Path]:
    """Yield a temporary directory with the files that the Dockerfile copies; it is removed after the block."""
    files = image_files()
    with temporary_directory("sandspan-template-") as context:
        (context / "template").mkdir()
        shutil.copy(files / "requirements.txt", context / "template")
        shutil.copy(files / DOCKERFILE, context)
        package = Path(contract.__file__).parents[1]
        shutil.copytree(package, context / "agent_runner", ignore=shutil.ignore_patterns("__pycache__"))
        yield context


def image_files() -> Path:
    """Return the directory of the Dockerfile: in the installed package or, in a checkout, beside it."""
    package = Path(__file__).parents[2]
    for folder in (package / "template", package.parent / "template"):
        if (folder / DOCKERFILE).is_file():
            return folder
    raise ConfigurationError(f"{DOCKERFILE} is missing from {package}: install sandspan again")
