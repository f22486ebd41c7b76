"""Settings of all tests: no time limits on examples (a first call compiles), and in CI the same
examples in every run."""

import os

from hypothesis import settings

settings.register_profile("graphtrace", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("graphtrace")
