"""The page of a run: well formed, self-contained, and with the numbers of its summary."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("jinja2")

from tests.evaluation.rows import full_row, outcome, selected
from torchrl_pwm.envs import MT80
from torchrl_pwm.evaluation import Film, compare_with_published, film_pictures, make_summary, write_html_report
from torchrl_pwm.evaluation.html_report import template_environment

VOID = {"meta", "img", "br"}
ROWS = [full_row("walker-run", [0.2, 0.6], [0.5, 0.4]), full_row("mw-reach", [1.0, 0.8], [0.9, 0.9])]


class Page(HTMLParser):
    """The elements of a page, their text, and whether every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts, self.ids = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style" and data.strip():
            self.texts.append(" ".join(data.split()))

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(self.texts)


def series(*values):
    return np.arange(1, len(values) + 1) * 50.0, np.array(values, dtype=float)


CURVES = {
    "walker-run": {
        seed: {
            "predicted_return": series(100, 200, 300 + seed),
            "real_return": series(90, 100, 80 + 20 * seed),
            **{f"trust_step{step}": series(0.0, 0.1 * step, 0.01 * step) for step in (1, 4, 8, 16)},
        }
        for seed in (0, 1)
    }
}


def page(tmp_path, rows=ROWS, **options):
    pytest.importorskip("rliable")
    summary = make_summary(rows, seed=0, seconds_total=100.0)
    path = write_html_report(summary, tmp_path / "deep" / "report.html", **options)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return Page(path.read_text(encoding="utf-8")), summary, path.read_text(encoding="utf-8")


@pytest.fixture
def whole(tmp_path):
    pytest.importorskip("PIL")
    frames = np.zeros((11, 8, 8, 3), np.uint8)
    films = {"walker-run": Film(film_pictures(frames, num_frames=3), "First episode: return 7.")}
    return page(tmp_path, curves=CURVES, films=films, config="seed: 0\nnote: '<b>&'\n", made="2026-11-21")


def test_page_needs_nothing_from_elsewhere(whole):
    content, _, text = whole
    assert not content.all("script") and not content.all("link")
    for tag, attrs in content.elements:
        for name in ("src", "href", "xlink:href"):
            if name in attrs:
                assert attrs[name].startswith(("#", "data:image/jpeg;base64,")), (tag, attrs[name])
    assert "url(" not in text and "@import" not in text and "http" not in text


def test_links_and_labels_lead_somewhere_and_ids_are_unique(whole):
    content, _, _ = whole
    assert len(content.ids) == len(set(content.ids))
    targets = [attrs["href"][1:] for tag, attrs in content.elements if attrs.get("href", "").startswith("#")]
    targets += [attrs["aria-labelledby"] for _, attrs in content.elements if "aria-labelledby" in attrs]
    assert targets and set(targets) <= set(content.ids)


def test_pictures_and_charts_are_described(whole):
    content, _, _ = whole
    assert [image["alt"] for image in content.all("img")] == [f"walker-run at step {step}" for step in (0, 5, 10)]
    plots = [attrs for attrs in content.all("svg") if "plot" in attrs.get("class", "")]
    assert len(plots) == 2 and all(attrs["role"] == "img" for attrs in plots)
    assert plots[0]["aria-label"].endswith("at its end: predicted return 300.5, real return 90.0.")
    assert "imagined step 16 +0.160" in plots[1]["aria-label"]
    for attrs in content.all("svg"):
        assert attrs.get("aria-hidden") == "true" or "aria-label" in attrs or "mark" in attrs["class"]
    assert content.all("html")[0]["lang"] == "en" and content.all("meta")[1]["name"] == "viewport"


def test_headline_and_table_hold_the_numbers_of_the_summary(whole):
    content, summary, _ = whole
    own = summary["statistics"]["policy"]
    assert "0.650" in content.text and f"{own['mean']['low']:.3f} to {own['mean']['high']:.3f}" in content.text
    # 0.4 against 0.45, 0.9 against 0.9
    assert "0 of 2" in content.text and "as good in 1 more" in content.text
    for number in ("0.20 0.60", "0.450", "0.300", "0.050", "0.900", "0.700", "400.0 ± 100.0", "90%"):
        assert number in content.text, number
    assert "First episode: return 7." in content.text and "2026-11-21" in content.text


def test_a_run_stands_beside_the_papers(tmp_path):
    comparison = compare_with_published(ROWS, "mt80", remarks=["Not the published data: <few>."])
    summary = make_summary(ROWS, seed=0, seconds_total=60.0, comparison=comparison)
    text = write_html_report(summary, tmp_path / "a.html").read_text(encoding="utf-8")
    content = Page(text)
    assert "papers" in content.ids and "&lt;few&gt;" in text and "2407.02466" in content.text
    section = content.text.split("Beside the papers")[-1]
    for number in (
        "0.824",
        "-0.424",
        "0.527 ± 0.025",
        "-0.127",
        "PWM, model of horizon 3",
        "1, 0, 1",
        "0.913",
        "0.858",
    ):
        assert number in section, number
    # horizon 3 has no averages by suite
    assert section.split("mean of Meta-World")[1].split("The mean of")[0].split() == ["0.858", "0.848", "-"]


def test_a_run_that_was_not_compared_has_no_such_section(whole):
    assert "Beside the papers" not in whole[0].text


def test_best_of_what_had_the_same_data_is_bold(whole):
    text = whole[2]
    assert re.findall(r'<td class="best">([\d.]+)</td>', text) == ["0.450", "0.900", "0.900"]


def test_every_seed_is_on_the_bar_of_its_task(whole):
    lefts = [attrs["style"] for attrs in whole[0].all("span") if attrs.get("class") == "seed-dot"]
    assert lefts == ["left:20.00%", "left:60.00%", "left:100.00%", "left:80.00%"]


def test_text_of_others_is_escaped(tmp_path):
    content = page(tmp_path, title="<script>alert(1)</script>", config="<img src=x>")[2]
    assert "<script>" not in content and "<img src=x>" not in content
    assert "&lt;script&gt;" in content


def test_curves_of_each_seed_and_their_mean_are_drawn(whole):
    styles = [path["style"] for path in whole[0].all("path") if "stroke: var(" in path.get("style", "")]
    # predicted and real return, and the trust probe at its last step
    for color in ("pwm", "policy", "t3"):
        faint = ["opacity" in style for style in styles if f"stroke: var(--{color})" in style]
        assert faint == [True, True, False], color
    levels = [re.search(r"var\(--(\w+)\)", style)[1] for style in styles if "dasharray" in style]
    assert levels == ["random", "cloning", "data"]


def probed(task, exploited):
    errors = {"own": {"error": {"1": 0.5, "4": -0.25}, "observation_error": {"1": 0.75, "4": 3.5}}}
    errors["data"] = {"error": {"1": 0.01, "4": 0.02}, "observation_error": {"1": 0.11, "4": 0.42}}
    seeds = [{"seed": 3, **errors}]
    line = "exploits its model: imagined 852, real 401, V - G +24.3" if exploited else "no sign of exploitation: real 7"
    return {**full_row(task, [0.5]), "trust": {"exploited": exploited, "line": line, "seeds": seeds}}


def test_the_probe_of_each_task_has_its_line_and_its_errors(tmp_path):
    content, _, text = page(tmp_path, [probed("walker-run", True), probed("mw-reach", False)])
    assert '<p class="remark"><strong>Trust probe:</strong> exploits its model: imagined 852, real 401, V - G' in text
    assert '<p class="muted"><strong>Trust probe:</strong> no sign of exploitation: real 7</p>' in text
    row = content.text.split("observation (seed 3), on its own path")[1]
    assert row.startswith(" 0.75 3.50 observation (seed 3), on data 0.11 0.42")
    assert "reward, predicted - real (seed 3), on its own path +0.500 -0.250" in content.text
    assert "No curves" not in content.text


def test_missing_curves_films_and_baselines_are_left_out(tmp_path):
    plain = {
        **outcome("walker-run", 0.5),
        "task": "walker-run",
        "behavior_return_mean": None,
        "seconds_extraction": None,
    }
    unscored = {**plain, "task": "Pendulum-v1", "score": None}
    only = {0: {"real_return": series(1.0), "trust_step4": series(0.1, float("nan"))}}
    content, _, text = page(tmp_path, [plain, unscored], curves={"walker-run": only})
    assert "one seed: no confidence interval" in content.text and "No curves or pictures were recorded." in content.text
    assert "no score" in content.text and "Baselines" not in content.text and "Configuration" not in content.text
    assert "Better than behaviour cloning" not in content.text and text.count('class="plot"') == 2
    assert "predicted return" not in content.text and "imagined step 4" in content.text
    assert "step 16, " not in content.text


@pytest.mark.parametrize("score", [None, 0.5])
def test_an_env_outside_the_tables_alone_has_a_report(tmp_path, score):
    row = {**outcome("walker-run", 0.5), "task": "Pendulum-v1", "score": score}
    assert "Pendulum-v1" in page(tmp_path, [{**row, "behavior_return_mean": 1.0, "seconds_extraction": 1.0}])[0].text


def test_eighty_tasks_have_closed_sections(tmp_path):
    content, _, _ = page(tmp_path, [full_row(task, [0.5], [0.4]) for task in MT80.names])
    sections = [attrs for attrs in content.all("details") if attrs.get("class") == "task"]
    assert len(sections) == 80 and not any("open" in attrs for attrs in sections)
    assert "80 of 80" in content.text


@pytest.mark.parametrize(
    "scores, shifts",
    [((0.5, 0.99, 1.0), (0, -15, 0)), ((0.0, 0.0, 0.01), (0, 15, 30)), ((0.5, 0.5, 0.5), (-15, 0, 15))],
)
def test_marks_of_equal_scores_stand_side_by_side_inside_the_scale(tmp_path, scores, shifts):
    random, pwm, tdmpc2 = scores
    others = {"baselines": {"random": outcome("walker-run", random)}, "published": {"pwm": pwm, "tdmpc2": tdmpc2}}
    content = page(tmp_path, [full_row("walker-run", [0.7], **others)])[0]
    places = [mark["style"] for mark in content.all("svg") if "calc(" in mark.get("style", "")]
    assert places == [f"left:calc({100 * score:.2f}% + {shift}px)" for score, shift in zip(scores, shifts)]


@pytest.mark.parametrize("module", ["jinja2", "matplotlib.figure"])
def test_missing_extra_names_the_install_command(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    template_environment.cache_clear()
    with pytest.raises(ImportError, match=r'pip install "torchrl-pwm\[plots\]"'):
        write_html_report(make_summary(ROWS, seed=0, seconds_total=1), tmp_path / "a.html", curves=CURVES)
    assert not list(tmp_path.iterdir())


def test_an_empty_summary_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no task"):
        write_html_report(make_summary([], seed=0, seconds_total=1), tmp_path / "a.html")
    assert not list(tmp_path.iterdir())


def test_the_page_shows_the_last_and_the_best_policies_and_says_which_count(tmp_path):
    rows = [selected(row, "best", 0.1) for row in ROWS]
    pytest.importorskip("rliable")
    summary = make_summary(rows, seed=0, seconds_total=100.0, select="best")
    text = Page(write_html_report(summary, tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "this run (best) PWM, last" in text and "cloning, last" in text and "The best one counts" in text
    for which in ("last", "best"):
        for method in ("policy", "cloning"):
            assert f"{summary[which]['statistics'][method]['mean']['value']:.3f}" in text
