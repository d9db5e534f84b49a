"""A short slice of `python tests/fuzz.py`, which throws mutated example configurations at the plugin."""

import re
import sys

from fuzz_yaml import generate, to_yaml
from material import ROOT, run_command

# Ten in a row that are quick: most are refused.
FIRST, COUNT = 121, 10


def test_mutated_examples_train_or_are_refused_by_name():
    # A process of its own: torch cannot be forked from one that has trained, as this one may have.
    command = (sys.executable, str(ROOT / "tests" / "fuzz.py"), f"--first={FIRST}", f"--count={COUNT}", "--jobs=1")
    result = run_command(*command, check=False)
    assert result.returncode == 0, result.stdout
    counts = dict(re.findall(r"([\w ]+): (\d+)", result.stdout.splitlines()[-1]))
    assert int(counts["trained"]) >= 1
    assert int(counts[" refused by us"]) >= 5
    assert sum(map(int, counts.values())) == COUNT


def test_a_configuration_can_be_repeated_by_its_number():
    texts = [to_yaml(generate(0, number)[1], {}) for number in (*range(50), *range(50))]
    assert texts[:50] == texts[50:]
    assert len(set(texts)) > 45
