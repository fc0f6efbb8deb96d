"""Pages of the site that come from elsewhere in the repository: reference, measured results, CONTRIBUTING."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("modules", "objectives", "envs", "envs.simulators", "planners", "data", "trainers", "evaluation")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the generated pages to the navigation."""
    sys.path.insert(0, str(ROOT))
    (reference,) = [entry["Reference"] for entry in config.nav or [] if "Reference" in entry]
    reference += [{package: f"api/{package}.md"} for package in PACKAGES]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the reference of each package, the measured results and CONTRIBUTING."""
    for package in PACKAGES:
        files.append(File.generated(config, f"api/{package}.md", content=reference(f"torchrl_pwm.{package}")))
    for path in sorted(RESULTS.iterdir()):
        if path.suffix in (".md", ".png", ".html", ".csv"):
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    files.append(File.generated(config, "contributing.md", abs_src_path=str(ROOT / "CONTRIBUTING.md")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links between docs and results, which hold in the repository, as they are on the site."""
    inside = page.file.src_uri.startswith("results/")
    markdown = re.sub(r"\]\((\.\./)+benchmarks/results/", "](" if inside else "](results/", markdown)
    return markdown.replace("](../../docs/", "](../") if inside else markdown


def reference(package: str) -> str:
    """The page of a package: its docstring, and each of its public names where it is defined."""
    module = importlib.import_module(package)
    names = [path for name in sorted(module.__all__, key=str.lower) if (path := defined_at(module, name))]
    return "\n\n".join([f"# {package}", module.__doc__ or "", *(f"::: {name}" for name in names)])


def defined_at(package: Any, name: str) -> str | None:
    """The path under which a public name is defined, or None for what has no docstring, such as a path."""
    home = getattr(getattr(package, name), "__module__", "")
    if not home.startswith(package.__name__.split(".")[0]) or not hasattr(sys.modules[home], name):
        return None
    # Names of envs.simulators have a page of their own.
    return f"{home}.{name}" if home.startswith(package.__name__) and not elsewhere(package.__name__, home) else None


def elsewhere(package: str, home: str) -> bool:
    """Whether a name is on the page of a package inside this one."""
    inner = [f"torchrl_pwm.{name}" for name in PACKAGES]
    return any(name.startswith(f"{package}.") and home.startswith(name) for name in inner)


class CrossReferences(griffe.Extension):
    """Docstrings as Markdown: ``:class:`~torchrl_pwm.Name` `` links to its page, and a shape [*, D] keeps its star."""

    markup = re.compile(r":\w+:`~?([\w.]+)`|``(.+?)``|(?<=\[)\*(?=[,\]])")

    def __init__(self) -> None:
        sys.path.insert(0, str(ROOT))
        self.homes: dict[str, str] = {}
        for package in PACKAGES:
            module = importlib.import_module(f"torchrl_pwm.{package}")
            self.homes |= {name: path for name in module.__all__ if (path := defined_at(module, name))}

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            lines = obj.docstring.value.splitlines()
            obj.docstring.value = "\n".join(line if is_example(line) else self._markdown(line) for line in lines)

    def _markdown(self, line: str) -> str:
        return self.markup.sub(self._replace, line)

    def _replace(self, match: re.Match[str]) -> str:
        if match[1]:
            name = match[1].rpartition(".")[2]
            return f"[`{name}`][{self.homes[name]}]" if name in self.homes else f"`{name}`"
        return f"`{match[2]}`" if match[2] else "\\*"


def is_example(line: str) -> bool:
    """Whether a line of a docstring is code to try."""
    return line.lstrip().startswith((">>>", "..."))
