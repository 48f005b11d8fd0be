"""What the commands of the trainer bring with them."""

import subprocess
import sys

IMPORTS = """
import sys
from trainer import evaluate, init, train, warmup
assert "tensorflow" not in sys.modules, "--help is to come at once"
import trainer.first, trainer.loop, trainer.warming, trainer.measures.evaluation
assert "apache_beam" not in sys.modules, "training needs no Beam"
"""


def test_commands_are_light_and_the_trainer_needs_no_beam():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
