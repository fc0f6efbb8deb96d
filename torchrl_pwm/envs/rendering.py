"""Pixels of a MuJoCo model, off screen.

Rendering needs an OpenGL library: EGL (``libegl1`` with a GPU driver or Mesa's software one, ``libegl-mesa0``),
OSMesa (``libosmesa6``) or a display for GLFW. They are tried in this order; the environment variable ``MUJOCO_GL``
(``egl``, ``osmesa`` or ``glfw``), where set, names the only one to try. The choice is made when the first picture
is taken, so that states need neither a display nor the variable.
"""

from __future__ import annotations

import atexit
import importlib
import os
import weakref
from typing import Any

import numpy as np

__all__ = ["OffscreenRenderer", "fixed_camera", "rendering_available"]

_BACKENDS = ("egl", "osmesa", "glfw")
_DISABLED = ("disable", "disabled", "off", "false", "0")
_LIVE: weakref.WeakSet[OffscreenRenderer] = weakref.WeakSet()


class OffscreenRenderer:
    """Renders one MuJoCo model to arrays.

    Args:
        model: a ``mujoco.MjModel``; its off-screen buffer is enlarged if it is smaller than the picture.
        height: height of the picture in pixels.
        width: width of the picture in pixels.

    Raises:
        RuntimeError: if no OpenGL library gives a context, with what was tried and what to install.
    """

    def __init__(self, model: Any, height: int, width: int) -> None:
        import mujoco

        self._gl: Any = None
        self._context: Any = None
        self._mujoco = mujoco
        self._model = model
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._pixels = np.empty((height, width, 3), dtype=np.uint8)
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        self._gl = _make_context(width, height)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        self._option = mujoco.MjvOption()
        _LIVE.add(self)

    def render(self, data: Any, camera: Any) -> np.ndarray:
        """Picture of the state in ``data`` (``mujoco.MjData``) from ``camera`` (``mujoco.MjvCamera``).

        Returns:
            uint8 array [height, width, 3], first row on top.
        """
        if self._gl is None:
            raise RuntimeError("this renderer was closed; build a new environment to render again")
        mujoco = self._mujoco
        self._gl.make_current()
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        mujoco.mjr_render(self._rect, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._rect, self._context)
        return self._pixels[::-1].copy()

    def close(self) -> None:
        """Free the OpenGL context; may be called twice."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = self._context = None


def fixed_camera(model: Any, camera: str | int) -> Any:
    """A ``mujoco.MjvCamera`` for a camera of the model, by name or number."""
    import mujoco

    view = mujoco.MjvCamera()
    view.type = mujoco.mjtCamera.mjCAMERA_FIXED.value
    view.fixedcamid = model.camera(camera).id
    return view


def rendering_available() -> bool:
    """Whether this machine can render off screen: True if one of the OpenGL libraries gives a context."""
    try:
        _make_context(16, 16).free()
    except RuntimeError:
        return False
    return True


def _make_context(width: int, height: int) -> Any:
    """An OpenGL context of the first library that works, chosen without ``MUJOCO_GL`` at import time."""
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    if wanted in _DISABLED:
        raise RuntimeError(
            f"pixels were asked for, but MUJOCO_GL={wanted} disables rendering; unset it or use one of {_BACKENDS}"
        )
    failures = []
    for backend in (wanted,) if wanted in _BACKENDS else _BACKENDS:
        if backend == "glfw" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            failures.append("glfw: there is no display")
            continue
        # PyOpenGL keeps the first platform it was told, so the name of a library that failed must not stay.
        platform = os.environ.get("PYOPENGL_PLATFORM")
        try:
            context = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
        # The loaders of OpenGL libraries fail in many ways, AttributeError among them where a symbol is missing.
        except (ImportError, RuntimeError, AttributeError, OSError, TypeError) as error:
            failures.append(f"{backend}: {type(error).__name__}: {error}")
            if platform is None:
                os.environ.pop("PYOPENGL_PLATFORM", None)
        else:
            # Handlers run in reverse order: this one must come after the library's own, which ends its display.
            atexit.unregister(_close_all)
            atexit.register(_close_all)
            return context
    raise RuntimeError(
        "pixels were asked for, but no OpenGL library gives an off-screen context ("
        + "; ".join(failures)
        + "); install one (apt-get install libegl1 libegl-mesa0, or libosmesa6), or build the env without from_pixels"
    )


def _close_all() -> None:
    """Free contexts while the OpenGL library is still loaded: freeing later prints errors at exit."""
    for renderer in list(_LIVE):
        renderer.close()
