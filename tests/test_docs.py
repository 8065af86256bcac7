"""Every example in the docstrings and in the README gives what it prints."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import fastdiv

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    m.name for m in pkgutil.iter_modules(fastdiv.__path__) if not m.name.startswith(("_kernels", "_cpu", "__"))
)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name, threads):
    result = doctest.testmod(importlib.import_module(f"fastdiv.{name}"))
    assert result.failed == 0


@pytest.mark.parametrize("name", fastdiv.__all__)
def test_public_objects_have_an_example(name):
    documented = getattr(fastdiv, name)
    if isinstance(documented, type) and issubclass(documented, Warning):
        assert documented.__doc__
    else:
        assert ">>>" in documented.__doc__


def test_readme(threads):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```pycon\n(.*?)```", text, flags=re.DOTALL))
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    test = doctest.DocTestParser().get_doctest(blocks, {}, "README.md", "README.md", 0)
    assert len(test.examples) > 20
    runner.run(test)
    assert runner.failures == 0
