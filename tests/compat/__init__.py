"""Data that commit f6f5305 left on disk, in Redis and in E2B works with today's code.

The files in ``fixtures/`` were recorded by the code of f6f5305, the last commit before the packages were reorganized.
The recorders need that code; they are in the history (``tests/compat/recorders``, last in commit 612c9c5). A recording
by later code would only show that the code agrees with itself, so the files are never recorded again. A later format
gets further files beside these.
"""
