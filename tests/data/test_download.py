"""Downloads from a server on this machine that answers like the hub."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from tests.data.killed import REPOSITORY
from tests.data.shards import make_shard
from torchrl_pwm._utils.files import locked
from torchrl_pwm.data import EpisodeStore, TDMPC2ExperienceReplay, download_checkpoint, download_shards
from torchrl_pwm.envs.tasks import MT30, MT80

CHECKPOINT = "nicklashansen/tdmpc2/resolve/main/multitask/mt80-5M.pt"
CONTENT = bytes(range(256)) * 4000


def shard_path(task_set, number):
    return f"datasets/nicklashansen/tdmpc2/resolve/main/{task_set}/chunk_{number}.pt"


def serve_shards(hub, tmp_path, task_set=MT30, length=500, rows=1):
    for i in range(4):
        torch.save(make_shard([("walker-run", i)] * rows, task_set=task_set, length=length), tmp_path / "shard.pt")
        hub.files[shard_path("mt30", i)] = (tmp_path / "shard.pt").read_bytes()
    (tmp_path / "shard.pt").unlink()


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


CHUNKS = [f"chunk_{i}.pt" for i in range(4)]


def test_download_fetches_checks_and_converts_the_right_shards_once(tmp_path, hub):
    serve_shards(hub, tmp_path)
    for _ in range(2):
        replay = TDMPC2ExperienceReplay("mt30", 8, root=tmp_path / "root", download=True)
        assert replay.sample().shape == (8, 17)
    assert hub.requests == [(name, None) for name in CHUNKS]
    assert EpisodeStore(tmp_path / "root" / "mt30", verify=True).num_rows == 4
    assert names(tmp_path / "root" / "shards") == CHUNKS


def test_shards_of_the_wrong_set_on_the_hub_make_no_data_set(tmp_path, hub):
    serve_shards(hub, tmp_path, MT80, 100)
    with pytest.raises(ValueError, match="pass task_set='mt80'"):
        TDMPC2ExperienceReplay("mt30", 8, root=tmp_path / "root", download=True)
    assert names(tmp_path / "root") == CHUNKS, "the download itself is kept"


def test_what_is_there_is_checked_and_not_fetched_again(tmp_path, hub):
    serve_shards(hub, tmp_path)
    paths = download_shards("mt30", tmp_path / "d", progress=False)
    assert [path.read_bytes() for path in paths] == [hub.files[shard_path("mt30", i)] for i in range(4)]
    hub.requests.clear()
    assert download_shards("mt30", tmp_path / "d", progress=False) == paths and hub.requests == []
    content = bytearray(paths[2].read_bytes())
    content[1000] ^= 1
    paths[2].write_bytes(content)
    with pytest.raises(ValueError, match=r"chunk_2\.pt has sha256 .*, but the hub says .*; delete it to download it"):
        download_shards("mt30", tmp_path / "d", progress=False)
    paths[2].write_bytes(content[:-1])
    with pytest.raises(ValueError, match=rf"has {len(content) - 1} bytes, but mt30/chunk_2\.pt .* has {len(content)}"):
        download_shards("mt30", tmp_path / "d", progress=False)
    assert paths[2].read_bytes() == content[:-1], "a file of the user is never deleted"


def test_a_download_with_another_checksum_is_refused_and_not_kept(tmp_path, hub):
    hub.files[CHECKPOINT] = CONTENT
    hub.stated[CHECKPOINT] = "ab" * 32
    with pytest.raises(ValueError, match=r"sha256 .*\.\.\., but the hub says abab.*damaged on its way .*call again"):
        download_checkpoint("mt80-5M", tmp_path, progress=False)
    assert names(tmp_path) == []
    del hub.stated[CHECKPOINT]
    assert download_checkpoint("mt80-5M", tmp_path, progress=False).read_bytes() == CONTENT


def test_a_connection_that_breaks_is_taken_up_where_it_broke(tmp_path, hub):
    hub.files[CHECKPOINT] = CONTENT
    hub.stop_after, hub.on_stop = 700_000, lambda: setattr(hub, "stop_after", None)
    assert download_checkpoint("mt80-5M.pt", tmp_path, progress=False).read_bytes() == CONTENT
    (name, first), (_, second) = hub.requests
    assert name == "mt80-5M.pt" and first is None
    assert 600_000 < int(second.removeprefix("bytes=").rstrip("-")) <= 700_000


SCRIPT = """
import sys
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 1 << 14  # written as it arrives
from torchrl_pwm.data.published.download import download_checkpoint
download_checkpoint("mt80-5M", sys.argv[1], progress=False)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs SIGKILL and file locks")
def test_a_killed_download_goes_on_where_it_stopped(tmp_path, hub):
    hub.files[CHECKPOINT] = CONTENT
    release = threading.Event()
    hub.stop_after, hub.on_stop = 700_000, release.wait
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, tmp_path], cwd=REPOSITORY, env=environment)
    end = time.monotonic() + 120
    parts = []
    while time.monotonic() < end and not (parts and parts[0].stat().st_size > 600_000):
        assert process.poll() is None, "the download ended by itself"
        time.sleep(0.02)
        parts = list((tmp_path / "multitask").glob(".mt80-5M.pt-*.part"))
    with pytest.raises(RuntimeError, match="another process is downloading"):
        download_checkpoint("mt80-5M", tmp_path, progress=False)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.stop_after = None
    release.set()
    arrived = parts[0].stat().st_size
    assert 600_000 < arrived <= 700_000
    assert download_checkpoint("mt80-5M", tmp_path, progress=False).read_bytes() == CONTENT
    assert hub.requests[-1] == ("mt80-5M.pt", f"bytes={arrived}-")
    assert names(tmp_path) == ["mt80-5M.pt"]


def test_a_download_that_cannot_go_on_keeps_what_has_arrived(tmp_path, hub, monkeypatch):
    hub.files[CHECKPOINT] = CONTENT
    hub.stop_after = 300_000
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    with pytest.raises(ConnectionError, match=r"mt80-5M\.pt .* stopped at \d+ of 1024000 bytes .*call again to go on"):
        download_checkpoint("mt80-5M", tmp_path, progress=False)
    (part,) = (tmp_path / "multitask").iterdir()
    assert part.name.endswith(".part") and not part.name.startswith("mt80")
    hub.stop_after = None
    assert download_checkpoint("mt80-5M", tmp_path, progress=False).read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file_starts_again(tmp_path, hub):
    hub.files[CHECKPOINT] = CONTENT
    hub.stated[CHECKPOINT] = "ab" * 32
    (tmp_path / "multitask").mkdir()
    part = tmp_path / "multitask" / f".mt80-5M.pt-{'ab' * 8}.part"
    part.write_bytes(CONTENT + b"more")
    with pytest.raises(ValueError, match="the hub says abab"):
        download_checkpoint("mt80-5M", tmp_path, progress=False)
    assert hub.requests == [("mt80-5M.pt", None)] and not part.exists()


def test_a_file_that_the_hub_does_not_have_is_named(tmp_path, hub):
    with pytest.raises(ConnectionError, match=r"multitask/mt80-6M\.pt of nicklashansen/tdmpc2 was not found at http"):
        download_checkpoint("mt80-6M", tmp_path, progress=False)
    assert names(tmp_path) == []


def test_a_server_that_states_no_checksum_is_refused(tmp_path, hub):
    hub.files[CHECKPOINT] = CONTENT
    hub.stated[CHECKPOINT] = "0" * 40
    with pytest.raises(ValueError, match=r"states no size and sha256 .*so a download could not be checked"):
        download_checkpoint("mt80-5M", tmp_path, progress=False)


def test_checkpoints_of_other_folders_and_repositories(tmp_path, hub):
    hub.files["someone/models/resolve/main/dmcontrol/dog-run-1.pt"] = b"weights"
    path = download_checkpoint("dmcontrol/dog-run-1", tmp_path, repository="someone/models", progress=False)
    assert path == tmp_path / "dmcontrol" / "dog-run-1.pt" and path.read_bytes() == b"weights"
    for name in ("../secret.pt", "/etc/passwd", "a/../../b"):
        with pytest.raises(ValueError, match="a path in the repository"):
            download_checkpoint(name, tmp_path)


def test_a_mirror_is_asked_instead_of_the_hub(tmp_path, hub, monkeypatch):
    hub.files[CHECKPOINT] = CONTENT
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nowhere)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", nowhere + "/{repo_id}/resolve/{revision}/{filename}"
    )
    assert download_checkpoint("mt80-5M", tmp_path, endpoint=hub.endpoint, progress=False).is_file()
    with pytest.raises(ConnectionError, match="check the connection"):
        download_checkpoint("mt80-5M", tmp_path, progress=False)


def test_progress_is_shown_unless_refused(tmp_path, hub, monkeypatch, capfd):
    hub.files[CHECKPOINT] = CONTENT
    monkeypatch.setattr("torchrl_pwm._utils.files.BAR_DELAY", 0.0)
    download_checkpoint("mt80-5M", tmp_path / "silent", progress=False)
    assert "%" not in capfd.readouterr().err
    download_checkpoint("mt80-5M", tmp_path / "shown")
    shown = capfd.readouterr().err
    assert "mt80-5M.pt" in shown and "checking multitask/mt80-5M.pt: 100%" in shown


def test_an_unknown_data_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="mt30, mt80, found 'mt50'"):
        download_shards("mt50", tmp_path)


def test_a_download_without_the_extra_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'pip install "torchrl-pwm\[hub\]"'):
        TDMPC2ExperienceReplay("mt30", 8, root=tmp_path, download=True)


def test_where_files_cannot_be_locked_downloads_work(tmp_path, hub, monkeypatch):
    hub.files[CHECKPOINT] = CONTENT
    monkeypatch.setattr("torchrl_pwm._utils.files.fcntl", None)
    assert download_checkpoint("mt80-5M", tmp_path, progress=False).is_file()
    with locked(tmp_path) as free:
        assert free is None
