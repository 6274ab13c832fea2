"""Contract suites that fakes and real servers must both pass."""

import pytest

# pytest rewrites assertions only in modules that it collects or that are registered.
pytest.register_assert_rewrite("tests.contracts.sink")
