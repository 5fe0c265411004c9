"""Settings of every test run."""

import os

# Threads of the linear algebra library fight over small matrices: set before numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
