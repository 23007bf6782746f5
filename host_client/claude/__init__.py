"""The Claude Agent SDK's `query` and `ClaudeSDKClient`, whose agent works in a sandbox of Sandspan.

A program changes its import alone::

    from host_client.claude import ClaudeSDKClient, query  # in place of: from claude_agent_sdk import …

Options and messages are the SDK's own. Hooks, `can_use_tool`, in-process tools and `stderr` run in this process; Claude
Code and its other tools run in the sandbox. docs/CLAUDE_SDK.md says what differs.
"""

from host_client.extras import needs

with needs("claude", "host_client.claude"):
    from ._client import ClaudeSDKClient, query

__all__ = ["ClaudeSDKClient", "query"]
