"""What the tests of the language share."""

import hypothesis

# The default run draws the same examples every time; the fuzz tests draw others on each run.
hypothesis.settings.register_profile("multiway", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("multiway")
