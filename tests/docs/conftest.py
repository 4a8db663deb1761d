"""What the tests of the documents share."""

import sys
from pathlib import Path

# The module beside the tests; tests are no package.
sys.path.insert(0, str(Path(__file__).parent))
