"""The public library: sessions with an agent, from their options to their takeover by another process.

::

    open_session, take_over ─► Session       what a caller uses: facts, commands, files, closing
                                ├ SandboxedRunner   the sandbox and the runner in it: started or adopted, ended or left
                                ├ SessionStream     reads a RunnerStream in the background, first what was seen before
                                │                   (Replay); feeds all the others, and the caller's mailbox or outlet
                                ├ Commander         writes commands; holds the requests that wait and the policy
                                ├ SessionOutcome    costs, errors and the end, as the events told them
                                └ SessionTrace      the session's spans (host_client.telemetry)

A session that is taken over has the same parts; its stream begins with a replay of what the dead host has seen. Each
part changes its own attributes only.
"""
