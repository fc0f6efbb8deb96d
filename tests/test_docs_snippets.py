"""Snippets of README and docs run as they are typed: Python, commands, names of files."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests.optional import is_optional
from tests.test_readme_ways import SHORTENED

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Numbers of a loop that a snippet needs to learn, and those that show that it runs.
SHORT = {
    "EPISODES, UPDATES = 40, 40": "EPISODES, UPDATES = 12, 1",
    "total_frames=8_000": "total_frames=400",
    "optim_steps_per_batch=40": "optim_steps_per_batch=1",
}


def blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
    """Line number and text of each fenced block of a page."""
    text = page.read_text()
    found = [(text[: match.start()].count("\n") + 2, match) for match in FENCE.finditer(text)]
    return [(line, match[2]) for line, match in found if match[1] in languages]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with a published checkpoint, agent and data set, recorded DFlex data and a finished run, all tiny."""
    import numpy as np
    from tensordict import TensorDict

    from tests.modules.agent_files import save_pwm_agent
    from torchrl_pwm.data import EpisodeStoreWriter

    golden = torch.load(ROOT / "tests/golden/tdmpc2_checkpoint_old.pt", weights_only=True)
    torch.save(golden["multi"]["checkpoint"], tmp_path / "mt80-48M.pt")
    with EpisodeStoreWriter(tmp_path / "data/mt80", "mt80", {"walker-run": 2}, row_length=100) as writer:
        writer.write("walker-run", np.zeros((2, 101, 39)), np.zeros((2, 100, 6)), np.ones((2, 100)))
    save_pwm_agent(tmp_path / "agent.pt", 5, 1, obs_rms=True)
    action, reward = torch.rand(4, 21, 2), torch.rand(4, 21)
    action[:, 0], reward[:, 0] = torch.nan, torch.nan
    recorded = TensorDict({"obs": torch.randn(4, 21, 5), "action": action, "reward": reward}, [4, 21])
    torch.save(recorded, tmp_path / "ant_data.pt")
    shutil.copytree(ROOT / "tests/golden/runs/finished/pwm_online", tmp_path / "runs/2026-11-28_cartpole_swingup")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=named)
def test_snippets_of_a_page_run_one_after_the_other(page, workplace):
    names: dict[str, object] = {}
    for line, block in blocks(page, "python"):
        for full, short in SHORT.items():
            block = block.replace(full, short)
        try:
            exec(compile("\n" * (line - 1) + block, str(page), "exec"), names)
        except ImportError as error:
            if not is_optional(error):
                raise
            pytest.skip(f"an extra is not installed: {error}")


def test_what_the_docs_include_is_run_by_a_test():
    files = {name for page in PAGES for name in re.findall(r'--8<-- "(.+)"', page.read_text())}
    assert files == {f"examples/readme/{name}" for name in SHORTENED}


def commands() -> list[str]:
    """Each documented command line once, without its comment."""
    lines = [line for page in PAGES for _, block in blocks(page, "bash") for line in block.splitlines()]
    inline = [code for page in PAGES for code in re.findall(r"`((?:torchrl-pwm|python) [^`]+)`", page.read_text())]
    return sorted({line.split(" # ")[0].split("#", 1)[0].strip() for line in [*lines, *inline]} - {""})


def starting(*prefixes: str) -> list[str]:
    return [command for command in commands() if command.startswith(prefixes)]


@pytest.mark.parametrize("command", starting("torchrl-pwm "))
def test_a_documented_command_composes_a_configuration(command, capsys):
    pytest.importorskip("hydra")
    from torchrl_pwm.runs.cli import COMMANDS, main

    name, *overrides = shlex.split(command)[1:]
    assert name in COMMANDS
    if name == "report":
        assert [override.split("=")[0] for override in overrides] == ["run"]
    elif overrides != ["--help"]:
        main([name, *overrides, "--cfg"])
        assert capsys.readouterr().out


@pytest.mark.parametrize("command", starting("python examples/"))
def test_a_documented_script_takes_its_arguments(command, monkeypatch, capsys):
    pytest.importorskip("hydra")
    script, *arguments = shlex.split(command)[1:]
    source = (ROOT / script).read_text()
    if "argparse" in source:
        assert all(f'"{argument}"' in source for argument in arguments if argument.startswith("--"))
        return
    monkeypatch.setattr(sys, "argv", [str(ROOT / script), *arguments, "--cfg"])
    runpy.run_path(str(ROOT / script), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", starting("python -m benchmarks", "make "))
def test_a_documented_benchmark_or_target_is_there(command):
    words = shlex.split(command)
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
    else:
        assert importlib.util.find_spec(words[2]) is not None


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_file_that_a_page_names_or_links_to_is_there(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    files = re.findall(r"`((?:torchrl_pwm|examples|benchmarks|tests|docs)(?:/[\w.-]+)+/?)`", text)
    assert [name for name in files if not (ROOT / name).exists()] == []
    # The reference, a page for each package, is on the site alone.
    links = [
        link for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text) if "api" not in (page.parent / link).parts
    ]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_site_builds_without_warnings_and_fetches_nothing(tmp_path, monkeypatch):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("material")
    monkeypatch.chdir(ROOT)  # where the configuration looks for snippets
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site")))
    remote = re.compile(r"""<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=["']https?://""")
    pages = list((tmp_path / "site").glob("*.html"))
    assert len(pages) > 10
    assert [page.name for page in pages if remote.search(page.read_text())] == []
