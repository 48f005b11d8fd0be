"""README and docs name what there is: commands, options, targets, variables, modules, pages."""

import ast
import contextlib
import importlib
import importlib.util
import inspect
import io
import re
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from fences import PAGES, ROOT, RUN, SHOWN, blocks_of

import pipeline
import trainer

COMMANDS = {
    "pipeline.ingest", "pipeline.mine", "pipeline.embed", "pipeline.rounds", "pipeline.report", "pipeline.records",
    "trainer.init", "trainer.warmup", "trainer.train", "trainer.evaluate",
}  # fmt: skip
OTHERS = {"full", "tune", "parallelism", "sdk_container_image", "region", "project", "worker_pool"}  # not ours
MAKEFILE = (ROOT / "Makefile").read_text()
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text_of(page: Path) -> str:
    """Without what the pages' own commands printed: output is not checked here, and docs/commands.md's help below."""
    text = page.read_text(encoding="utf-8")
    return text.partition("\n---\n")[0] if page.name == "commands.md" else text


def code_of(page: Path) -> list[str]:
    """Lines of code blocks, and what is between backticks; a line that ends in a backslash goes on."""
    text = text_of(page).replace("\\\n", " ")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [*(line for block in blocks for line in block.splitlines()), *re.findall(r"`([^`]+)`", rest)]


def commands_of(page: Path) -> list[tuple[str, str]]:
    """(module, arguments) of every `python -m` there."""
    found = [re.search(r"python -m ([\w.]+)(.*)", line.replace("\n", " ")) for line in code_of(page)]
    return [(match[1], match[2].partition("#")[0]) for match in found if match]


def options_in(text: str) -> set[str]:
    """`--run-dir` and `--run_dir` are the same."""
    return {name.replace("-", "_") for name in re.findall(r"(?<![\w-])--([a-z][\w-]*)", text)}


@pytest.fixture(scope="module")
def helps() -> dict[str, list[str]]:
    """What each command's --help says; of one with subcommands, what each of theirs does."""
    return {command: help_of(command) for command in sorted(COMMANDS)}


def help_of(command: str) -> list[str]:
    main, texts = importlib.import_module(command).main, []
    for subcommand in (["inspect"], ["verify"], ["export"]) if command == "pipeline.records" else ([],):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
            main([*subcommand, "--help"])
        texts.append(printed.getvalue())
    return texts


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 8192


def test_the_image_has_the_launcher_of_the_locked_beam():
    [locked] = re.findall(r"^apache-beam==(\S+)", (ROOT / "requirements/default.lock").read_text(), re.MULTILINE)
    assert f"/beam_python3.11_sdk:{locked} " in (ROOT / "Dockerfile").read_text()


@every_page
def test_every_block_says_what_it_is(page):
    found = blocks_of(page)
    assert len(re.findall(r"^```", page.read_text(encoding="utf-8"), re.MULTILINE)) == 2 * len(found)
    for block in found:
        where = f"{page.name}, line {block.line}"
        assert block.language in RUN + SHOWN, f"{where}: {block.language!r}"
        assert block.said or not block.mark, f"{where}: {block.mark}, and no reason or name"
        left_out = block.language in RUN and block.mark == "not run"
        assert not (left_out and page.name.startswith(("README", "tutorial"))), f"{where} must run"


def test_python_api_names_all_that_is_public():
    """Each name has a section, and there each parameter is named between backticks."""
    text = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (\w[\w.]*)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    public = {name: getattr(package, name) for package in (pipeline, trainer) for name in package.__all__}
    corpus = public["Corpus"]
    methods = {f"Corpus.{name}": getattr(corpus, name) for name in ("ingest", "open", "rows", "split")}
    assert set(sections) == set(public) - {"Corpus"} | set(methods)
    for name, value in (public | methods).items():
        if name in ("Corpus", "InputError"):
            continue
        for parameter in inspect.signature(value).parameters:
            if parameter not in ("self", "name", "kwargs"):
                assert f"`{parameter}`" in sections[name], f"{name}: {parameter} is not described"


@every_page
def test_commands_are_there_and_know_their_options(page, helps):
    beams = set(PipelineOptions([]).get_all_options()) | OTHERS
    for module, arguments in commands_of(page):
        if module.startswith("benchmarks."):
            assert importlib.util.find_spec(module), module
        elif module.startswith(("pipeline.", "trainer.")):
            assert module in COMMANDS, f"there is no {module}"
            told = " ".join(helps[module])
            known = options_in(told) | (beams if "Beam's options" in told else set())
            assert options_in(arguments) <= known, f"{module}: {options_in(arguments) - known}"


@every_page
def test_options_that_are_named_alone_are_there(page, helps):
    known = set(PipelineOptions([]).get_all_options()) | OTHERS
    known |= options_in(str(helps))
    alone = {name for code in code_of(page) if code.startswith("--") for name in options_in(code)}
    assert alone <= known, alone - known


@every_page
def test_targets_and_variables_of_make_are_there(page):
    targets = re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE)
    variables = re.findall(r"^(\w+) \?=", MAKEFILE, re.MULTILINE)
    for line in code_of(page):
        if re.match(r"make( |$)", line):
            words = re.sub(r'"[^"]*"|\'[^\']*\'', "", line.partition("#")[0]).split()[1:]
            for word in words:
                name, equals, _ = word.partition("=")
                assert name in (variables if equals else targets), f"{line}: {name}"


@every_page
def test_python_imports_what_there_is(page):
    for block in re.findall(r"^```python\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("pipeline", "trainer")):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


@every_page
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, link


@every_page
def test_files_of_ours_that_are_named_are_there(page):
    for code in code_of(page):
        if re.fullmatch(r"(pipeline|trainer|tests|benchmarks|docs)/[\w./-]+", code) and "NAME" not in code:
            assert (ROOT / code).exists(), code


def test_the_page_of_commands_says_what_help_says(helps):
    page = words((ROOT / "docs" / "commands.md").read_text(encoding="utf-8"))
    for command, texts in helps.items():
        assert all(words(text) in page for text in texts), f"{command}'s options changed since: make docs"


def words(text: str) -> str:
    """Whatever lines and frames are drawn around them."""
    return " ".join(re.findall(r"\w+", text))
