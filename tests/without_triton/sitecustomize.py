"""With this folder on PYTHONPATH, Python starts as if Triton were not installed: `make unit-without-triton`.

Python imports a module of this name when it starts, so whatever the tests start (workers, scripts, notebook kernels) is
without Triton as well.
"""

import sys

sys.modules["triton"] = None  # type: ignore[assignment]  # how Python is told that a module cannot be imported
