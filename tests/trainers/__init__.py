"""Tests of the trainers that selection runs in; `cases` says how a framework joins them."""

import pytest

pytest.register_assert_rewrite("trainers.cases")
