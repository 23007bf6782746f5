"""Scripts of the model for the service's tests."""

from __future__ import annotations

TWO_APPROVALS = """
conversations:
  main:
    replies:
      - text: I make a file.
        tools: [{name: Bash, input: {command: touch made}}]
      - text: And another.
        tools: [{name: Bash, input: {command: touch other}}]
      - {text: Done.}
      - {text: Again.}
"""

QUESTION = """
conversations:
  main:
    replies:
      - tools:
          - name: AskUserQuestion
            input:
              questions:
                - question: Which colour?
                  header: Colour
                  multiSelect: false
                  options: [{label: Red, description: r}, {label: Blue, description: b}]
      - {text: Thank you.}
"""

TALK = """
conversations:
  main:
    replies:
      - {text: "Hello there."}
      - {text: "And again."}
      - {text: "And once more."}
"""

HANGS = """
conversations:
  main:
    replies:
      - {text: "I think.", pace: 0.001, delay: 600}
      - {text: Fine.}
"""
