"""Folders that hold a network and how it was built, on disk and on the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_pwm._utils.door import pack_safetensors, read_json, read_safetensors
from torchrl_pwm._utils.errors import DamagedFileError, first_line
from torchrl_pwm._utils.extras import require
from torchrl_pwm._utils.files import replace_file, replaced_file
from torchrl_pwm.modules.arguments import Rebuildable, build_for

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_CLASS = "torchrl_pwm_class"
_DOWNLOAD = ("revision", "cache_dir", "force_download", "token", "local_files_only")

if TYPE_CHECKING:
    from huggingface_hub import PyTorchModelHubMixin
else:
    try:
        from huggingface_hub import PyTorchModelHubMixin
    except ImportError:

        class PyTorchModelHubMixin:
            """Stands where the hub's mixin does if that is not installed, and says how to install it."""

            def __init_subclass__(cls, **options: Any) -> None:
                super().__init_subclass__()

            def save_pretrained(self, *arguments: Any, **options: Any) -> None:
                _require_hub("save_pretrained")

            def push_to_hub(self, *arguments: Any, **options: Any) -> None:
                _require_hub("push_to_hub")

            @classmethod
            def from_pretrained(cls, *arguments: Any, **options: Any) -> None:
                _require_hub("from_pretrained")


def _require_hub(name: str) -> None:
    require("huggingface_hub", extra="hub", purpose=name)


class Pretrained(
    Rebuildable,
    PyTorchModelHubMixin,
    library_name="torchrl_pwm",
    paper_url="https://arxiv.org/abs/2407.02466",
    tags=["reinforcement-learning", "torchrl", "world-model"],
):
    """A network with ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` of the Hugging Face hub's mixin.

    A folder holds ``model.safetensors``, all of the state dict, and ``config.json``, the constructor's arguments. What
    is read back has the same numbers bit for bit, and nothing is unpickled. The three methods need the ``hub`` extra.
    """

    def _save_pretrained(self, save_directory: Path) -> None:
        config = {**self.constructor_arguments, _CLASS: type(self).__name__}
        with replaced_file(save_directory / WEIGHTS_FILE) as temporary:
            temporary.write_bytes(pack_safetensors(self.state_dict(), {"format": "pt"}))
        replace_file(save_directory / CONFIG_FILE, json.dumps(config, indent=2).encode())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Any:
        """The network of a folder that :meth:`save_pretrained` wrote, or of a repository of the hub.

        Args:
            pretrained_model_name_or_path: the folder, or ``"user/repository"``.

        Keyword Args:
            **options: those of the hub's mixin (``revision``, ``token``, ...), and arguments of the constructor, in
                place of those in ``config.json``.

        Raises:
            FileNotFoundError: if the folder lacks one of the two files.
            DamagedFileError: if one of them is damaged, or of another class or version.
            ImportError: without the ``hub`` extra; :func:`~torchrl_pwm.load_world_model` reads folders without it.
        """
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            read_config(folder)
        return super().from_pretrained(pretrained_model_name_or_path, **options)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        config: dict[str, Any] | None = None,
        map_location: Any = "cpu",
        strict: bool = True,
        **options: Any,
    ) -> Any:
        download = {name: options.pop(name, None) for name in _DOWNLOAD}
        file = Path(model_id) / WEIGHTS_FILE
        if not Path(model_id).is_dir():
            hub: Any = require("huggingface_hub", extra="hub", purpose="from_pretrained")
            file = Path(hub.hf_hub_download(repo_id=model_id, filename=WEIGHTS_FILE, **download))
        if config is None:
            raise FileNotFoundError(f"No {CONFIG_FILE} in {model_id}: save_pretrained writes it beside {WEIGHTS_FILE}.")
        return cls._rebuild({**config, **options}, file, strict=strict).to(map_location).eval()

    @classmethod
    def _from_named(cls, **arguments: Any) -> Any:
        return cls.from_arguments(arguments)

    @classmethod
    def _rebuild(cls, config: dict[str, Any], file: Path, *, strict: bool = True) -> Any:
        """The network of a configuration and a file of weights."""
        arguments = dict(config)
        kind = arguments.pop(_CLASS, cls.__name__)
        if kind not in [base.__name__ for base in cls.__mro__]:
            raise DamagedFileError(f"{file.parent} holds a {kind}, not a {cls.__name__}: use {kind}.from_pretrained")
        tensors, _ = read_safetensors(file, what="weights of a network", finite=True)
        try:
            network = build_for(tensors, cls._from_named, arguments)
            network.load_state_dict(tensors, strict=strict)
        except (TypeError, LookupError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
            raise DamagedFileError(
                f"{file.parent} was written by another version, or is damaged: {CONFIG_FILE} and {WEIGHTS_FILE} do not "
                f"make a {cls.__name__} ({first_line(error)})"
            ) from error
        return network


def load_folder(cls: type[Pretrained], folder: Path, **arguments: Any) -> Any:
    """The network of a folder that ``save_pretrained`` wrote, without the hub's package.

    Args:
        cls: class of the network.
        folder: the folder.
        **arguments: of the constructor, in place of those in the configuration, or beside them.

    Raises:
        FileNotFoundError, DamagedFileError: as :meth:`Pretrained.from_pretrained`.
    """
    return cls._rebuild({**read_config(folder), **arguments}, folder / WEIGHTS_FILE).eval()


def class_of(config: dict[str, Any]) -> str | None:
    """Name of the class whose arguments a configuration holds."""
    return config.get(_CLASS)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration in a folder.

    Raises:
        FileNotFoundError: if there is none.
        DamagedFileError: if it is no JSON object.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"No {CONFIG_FILE} in {folder}: save_pretrained writes it beside {WEIGHTS_FILE}.")
    config: dict[str, Any] = read_json(
        path, what="configuration of a network", keys=[], advice="save it again, or download it again"
    )
    return config
