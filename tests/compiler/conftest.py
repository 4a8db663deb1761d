"""What the tests of the compiler share."""

import sys
from pathlib import Path

import hypothesis
import torch

# Tests are no package: what they share is found here and one folder up.
sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]

# One thread: the tensors are tiny, and the order of sums must not depend on the computer.
torch.set_num_threads(1)

# The default run draws the same examples every time; the fuzz tests draw others on each run.
hypothesis.settings.register_profile("multiway", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("multiway")
