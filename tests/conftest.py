"""Settings of all tests."""

import hypothesis

hypothesis.settings.register_profile("deeprec", deadline=None)  # machines are shared, and may be slow for a while
hypothesis.settings.load_profile("deeprec")
