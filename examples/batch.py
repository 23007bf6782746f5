"""Run a file of prompts, one per line, a few at a time, each in an empty folder, and print a line for each result.

python batch.py prompts.txt
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from host_client import AgentOptions, AgentResult, run_agent

AT_ONCE = 4
OPTIONS = AgentOptions(user_id="batch", max_turns=20, max_budget_usd=1.0)


async def run_all(prompts: list[str]) -> list[AgentResult]:
    """Run all prompts; return the results in the order of the prompts."""
    room = asyncio.Semaphore(AT_ONCE)

    async def run(prompt: str) -> AgentResult:
        async with room:
            return await run_agent(prompt, OPTIONS, approvals="auto")

    return await asyncio.gather(*map(run, prompts))


def main() -> int:
    prompts = [line for line in Path(sys.argv[1]).read_text().splitlines() if line.strip()]
    results = asyncio.run(run_all(prompts))
    for prompt, result in zip(prompts, results, strict=True):
        print(f"{prompt}: {result.error_type if result.is_error else result.text} (${result.cost_usd:.4f})")
    return int(any(result.is_error for result in results))


if __name__ == "__main__":
    sys.exit(main())
