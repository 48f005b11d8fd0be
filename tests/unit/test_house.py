"""What `make bench-house` finds, and what it must leave alone."""

import pytest

from benchmarks.house import code_lines, reached_into


@pytest.mark.parametrize(
    "snippet",
    [
        "model._flatten_layers()",
        "self._option_string_actions",
        "super()._format_usage()",
        "getattr(model, '_layers')",
        "import argparse\nargparse._SubParsersAction",
        "from argparse import _HelpAction",
        "from keras.src import backend",
        "import scipy._lib",
        "import keras\nkeras.src.ops",
        "import argparse\nclass Help(argparse.HelpFormatter):\n  def _get_default_metavar_for_optional(self, a): ...",
        "from a.b import StateSampler\nStateSampler.__init__.__defaults__ = (10,)",
        "layer.call = f",
        "del layer.call",
        "layer.rate *= 2",
        "first, layer.call = f, g",
        "setattr(layer, name, f)",
        "object.__setattr__(layer, 'call', f)",
        "import tensorflow as tf\ntf.function = f",
        "import sys\nsys.modules['a'] = None",
        "from sys import modules\nmodules.clear()",
        "import os as system\nsystem.dup2(1, 2)",
        "import os\nos._exit(1)",
        "import gc\ngc.freeze()",
        "from gc import freeze\nfreeze()",
    ],
)
def test_finds(snippet):
    last_line = f"a.py:{len(snippet.splitlines())}: "
    assert any(place.startswith(last_line) for place in reached_into({"a.py": snippet}))


@pytest.mark.parametrize(
    "snippet",
    [
        "class A:\n  _kept: int = 0\n  def _load(self): ...\nother._load(); other._kept",
        "class A:\n  def __init__(self): self._x = 1\nother._x",
        "import apache_beam as beam\nclass A(beam.DoFn):\n  def _load(self): ...\n  def process(self): self._load()",
        "import enum\nclass A(enum.Enum):\n  @classmethod\n  def _missing_(cls, value): ...",
        "self.rate = 1; cls.rate = 2; setattr(self, 'rate', 3); object.__setattr__(self, 'rate', 4)",
        "optimizer.learning_rate = .1",
        "arguments.margin = .2",
        "from pipeline.mine import _Step\n_Step",
        "_ = type(error).__name__",
        "import sys, os\nsys.argv; os.environ['A'] = 'b'; os.dup(2)",
        "import gcsfs\ngcsfs.GCSFileSystem()",
    ],
)
def test_leaves_alone(snippet):
    assert reached_into({"a.py": snippet}) == []


def test_what_one_file_defines_another_may_use():
    assert reached_into({"a.py": "_HEADER = 12", "b.py": "a._HEADER; a._FOOTER"}) == ["b.py:1: a._FOOTER"]


def test_a_place_is_named_once():
    assert reached_into({"a.py": "layer._x.call = f"}) == ["a.py:1: layer._x.call is set"]


def test_code_lines_leave_out_docstrings_comments_and_blank_lines():
    text = '"""Of a\n\nmodule."""\n\nx = """no\ndocstring"""  # code\n# no code\n\ndef f():\n  "Of f."\n  return x\n'
    assert code_lines(text) == 4
