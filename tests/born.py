"""What a forked process does first: it becomes as `python -c CODE ARGUMENTS` is, with pipes for what it says.

The class `Forked` of conftest.py runs this file, with CODE, ARGUMENTS, PIPES and ENVIRONMENT as globals.
"""

import multiprocessing
import os
import signal
import sys

given = dict(globals())
for number, pipe in enumerate(given["PIPES"], 1):
    os.dup2(pipe.fileno(), number)
    pipe.close()
os.environ.clear()
os.environ.update(given["ENVIRONMENT"])
os.setsid()
multiprocessing.set_start_method(None, force=True)  # the platform's own, not that of this process
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background inherits an ignored SIGINT
sys.argv = ["-c", *given["ARGUMENTS"]]
exec(compile(given["CODE"], "<string>", "exec"), {"__name__": "__main__"})
