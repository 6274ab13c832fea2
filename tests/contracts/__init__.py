"""What every implementation of a seam promises, asked of fakes and of the real ones alike."""

import pytest

# Only modules that pytest collects itself show what an assertion compared.
pytest.register_assert_rewrite("tests.contracts.sink")
