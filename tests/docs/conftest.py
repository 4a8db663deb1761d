"""What the tests of the documents share."""

import sys
from pathlib import Path

import torch

# The module beside the tests; tests are no package.
sys.path.insert(0, str(Path(__file__).parent))

# The tensors are tiny; threads would only wait for one another.
torch.set_num_threads(1)
