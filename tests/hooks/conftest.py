"""Let the tests of this folder import `stub_trainer`, and `toy` of the engine's tests for runs of the real loop."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "engine")]
