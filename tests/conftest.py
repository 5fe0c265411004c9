"""Settings of every test run."""

import os

# Threads of the linear algebra library fight over small matrices: set before numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Requests are counted, and servers reuse ports: tests of the cache switch it on in a folder of their own.
os.environ["DRUPE_CACHE_LIMIT"] = "0"

from hypothesis import settings

# A gate must answer the same twice: examples are fixed there, and drawn anew on a developer's machine.
settings.register_profile("gate", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("gate")

# They need the libraries whose files they write; the tests need only the files.
collect_ignore_glob = [
    *(
        "adapters/make*.py",
        "architectures/make.py",
        "implied/make.py",
        "architectures/probe.py",
        "readers/*_files/make*.py",
    ),
]
