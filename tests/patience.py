"""Limits of the waits of all tests.

The rings run side by side on few cores, where everything takes several times as long as alone. A wait that
ends early costs nothing whatever its limit is, so there are few limits. What hangs without such a wait is
ended by pytest-timeout.
"""

SECONDS = 360
"""Limit of what takes seconds on an idle machine: a pod that starts, a status that is written."""
MINUTES = 1600
"""Limit of what takes a minute or more on an idle machine: a training, a process with TensorFlow."""
REQUEST = 60
"""Limit of one HTTP request."""
KUBECTL = f"--timeout={SECONDS}s"
"""The first limit as kubectl takes it: by itself it waits for 30 seconds."""
