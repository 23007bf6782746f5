"""The public library: sessions with an agent, from their options to their takeover by another process.

::

    open_session, take_over ─► Session       owns the sandbox and its runner; the object that a caller uses
                                ├ SessionStream     reads a RunnerStream in the background and passes each event to
                                │                   the other parts and to the caller's mailbox or outlet
                                ├ Commander         writes commands; keeps the waiting requests; applies the policy
                                ├ RunnerStopper     ends the runner in steps
                                ├ SessionOutcome    costs, tool calls, errors and the end, according to the events
                                └ SessionTrace      the session's spans (host_client.telemetry)

A session that is taken over has the same parts; its stream begins with a `Replay` of the events that the dead host has
processed. Each part changes its own attributes only.
"""
