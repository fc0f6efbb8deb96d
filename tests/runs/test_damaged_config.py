"""A configuration that is cut short or changed is told by one sentence, of whatever kind the run is."""

from __future__ import annotations

import pytest

pytest.importorskip("hydra")

from omegaconf import OmegaConf

from tests.attacks.files import RUNS, composed
from torchrl_pwm import DamagedFileError
from torchrl_pwm.runs.cli import run_command
from torchrl_pwm.runs.folder import claim_folder, open_run
from torchrl_pwm.runs.saved import config_text, read_config


def resumed(command, folder):
    config = composed(command).copy()
    config.resume = str(folder)
    return config


@pytest.mark.parametrize("command", RUNS)
def test_a_configuration_cut_between_two_lines_is_refused_with_what_to_do(command, tmp_path):
    file, lines = tmp_path / "config.yaml", config_text(composed(command)).splitlines(keepends=True)
    file.write_bytes(b"".join(lines))
    assert open_run(resumed(command, tmp_path), [])[1] == tmp_path
    file.write_bytes(b"".join(lines[: len(lines) // 2]))
    with pytest.raises(DamagedFileError, match=r"config\.yaml is damaged, or was changed.*Restore it, or.*delete"):
        open_run(resumed(command, tmp_path), [])


def test_a_configuration_that_was_changed_on_purpose_is_read_without_its_first_line(tmp_path):
    text = config_text(composed("shac")).decode()
    (tmp_path / "config.yaml").write_text(text.replace("seed: 0", "seed: 5"))
    with pytest.raises(DamagedFileError, match="delete that line"):
        read_config(tmp_path)
    (tmp_path / "config.yaml").write_text(text.replace("seed: 0", "seed: 5").partition("\n")[2])
    assert read_config(tmp_path).seed == 5


def test_a_new_folder_gets_a_configuration_with_its_checksum(tmp_path):
    claim_folder(composed("shac"), tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").read_text().startswith("# sha256 of all below: ")
    assert read_config(tmp_path / "run") == composed("shac")


@pytest.mark.parametrize("wrong", ["iterations: many", "iterations: -3", "iterations: [1, 2]"])
def test_an_earlier_configuration_with_a_wrong_value_is_told_as_one_of_the_file(wrong, tmp_path):
    text = config_text(composed("shac")).decode().partition("\n")[2]
    changed = text.replace(f"\niterations: {composed('shac').iterations}\n", f"\n{wrong}\n")
    assert changed != text
    (tmp_path / "config.yaml").write_text(changed)
    with pytest.raises(DamagedFileError, match=r"config\.yaml is no whole configuration.*iterations"):
        open_run(resumed("shac", tmp_path), [])


def test_an_option_that_a_run_lacks_is_told_as_one_of_the_file(tmp_path):
    (tmp_path / "config.yaml").write_bytes(config_text(composed("shac")))

    def run(config, folder):
        OmegaConf.set_struct(config, True)
        return config.no_such_option

    with pytest.raises(DamagedFileError, match=r"config\.yaml is no whole configuration.*no_such_option"):
        run_command("shac", run, resumed("shac", tmp_path), [], table=False)
