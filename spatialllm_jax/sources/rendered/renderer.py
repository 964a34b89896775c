"""Draws a list of triangles with moderngl: colour with shadows, z-depth, instance ids, objects alone.

World frame: +x right, +y ahead, +z up, metres. One context per process and one set of buffers per
image size; everything of a scene sits in one vertex buffer and a pass is at most two draw calls.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from spatialllm_jax.errors import UserError
from spatialllm_jax.sources.rendered import shaders

NEAR, FAR = 0.05, 400.0
SHADOW_SIZE = 768
MATERIALS = {"plain": 0, "tiles": 1, "planks": 2, "carpet": 3, "street": 4, "wall": 5, "building": 6}
VERTEX_FLOATS = 12      # position 3, normal 3, colour 3, gloss, material, instance


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A camera in the world.

    Attributes:
        position: metres, world frame.
        rotation: rows are the camera's axes (right, down, forward) in the world frame.
        intrinsics: K in pixels.
    """

    position: Float[np.ndarray, " 3"]
    rotation: Float[np.ndarray, "3 3"]
    intrinsics: Float[np.ndarray, "3 3"]

    def to_camera(self, points: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
        """World points in the camera frame."""
        return (points - self.position) @ self.rotation.T

    def project(self, points: Float[np.ndarray, "... 3"]) -> tuple[Float[np.ndarray, "... 2"],
                                                                    Float[np.ndarray, " ..."]]:
        """Pixels and z-depth of world points; pixels mean nothing where the depth is not positive."""
        camera = self.to_camera(points)
        depth = camera[..., 2]
        safe = np.where(np.abs(depth) < 1e-6, 1e-6, depth)
        focal = np.array([self.intrinsics[0, 0], self.intrinsics[1, 1]])
        return camera[..., :2] / safe[..., None] * focal + self.intrinsics[:2, 2], depth


@dataclasses.dataclass(frozen=True, eq=False)
class Drawing:
    """All that a picture is made of.

    Attributes:
        vertices: interleaved position, normal, sRGB colour, gloss, material, instance id (0: scenery).
        faces: indices; objects first, then things that cast shadows, then the rest.
        object_faces: number of leading faces that belong to objects.
        caster_faces: number of leading faces that cast shadows.
        closed: whether objects are closed surfaces, so that their back faces need not be drawn.
        light: unit vector towards the light.
        light_center, light_radius: ball (world frame, metres) inside which shadows are cast.
        uniforms: further values by the names used in the shaders.
    """

    vertices: Float[np.ndarray, "V 12"]
    faces: Int[np.ndarray, "F 3"]
    object_faces: int
    caster_faces: int
    closed: bool
    light: Float[np.ndarray, " 3"]
    light_center: Float[np.ndarray, " 3"]
    light_radius: float
    uniforms: dict[str, Any]
    sky: tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """What the renderer returns.

    Attributes:
        image: sRGB.
        depth: z-depth in metres; infinite where nothing was hit (sky).
        instances: 0 for scenery, i + 1 for object i.
        alone: pixels that each object covers inside the image when nothing hides it.
    """

    image: UInt8[np.ndarray, "H W 3"]
    depth: Float[np.ndarray, "H W"]
    instances: UInt8[np.ndarray, "H W"]
    alone: Int[np.ndarray, " N"]


def interleave(vertices: np.ndarray, normals: np.ndarray, colours: np.ndarray, gloss: np.ndarray | float,
               material: str, instance: int) -> Float[np.ndarray, "V 12"]:
    """Vertices in the layout of the vertex buffer."""
    out = np.empty((len(vertices), VERTEX_FLOATS), np.float32)
    out[:, 0:3], out[:, 3:6], out[:, 6:9], out[:, 9] = vertices, normals, colours, gloss
    out[:, 10], out[:, 11] = MATERIALS[material], instance
    return out


def projection(view: View, size: int) -> Float[np.ndarray, "4 4"]:
    """Clip-space matrix whose image has row 0 at the top when read back."""
    fx, fy, cx, cy = (view.intrinsics[0, 0], view.intrinsics[1, 1], view.intrinsics[0, 2],
                      view.intrinsics[1, 2])
    clip = np.array([[2 * fx / size, 0, 2 * cx / size - 1, 0], [0, 2 * fy / size, 2 * cy / size - 1, 0],
                     [0, 0, (FAR + NEAR) / (FAR - NEAR), -2 * FAR * NEAR / (FAR - NEAR)], [0, 0, 1, 0]])
    return clip @ _rigid(view.rotation, view.position)


def _rigid(rotation: np.ndarray, position: np.ndarray) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = rotation, -rotation @ position
    return result


def _light_projection(light: np.ndarray, center: np.ndarray, radius: float) -> np.ndarray:
    """Orthographic clip-space matrix that looks along the light at a ball."""
    helper = np.array([0.0, 1.0, 0.0]) if abs(light[1]) < 0.9 else np.array([1.0, 0.0, 0.0])
    right = np.cross(helper, light)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(light, right), -light])
    scale = np.diag([1 / radius, 1 / radius, 1 / (2 * radius), 1.0])
    return scale @ _rigid(rotation, center)


def _open() -> Any:
    try:
        import moderngl
    except ImportError:
        raise UserError("rendering needs the package moderngl, which is not installed; "
                        'run: pip install "spatialllm-jax[render]"') from None
    try:
        options: dict[str, Any] = {"backend": "egl"}
        return moderngl.create_context(standalone=True, require=330, **options)
    except Exception as error:  # glcontext raises plain Exception for a missing library or display
        raise UserError(f"no OpenGL could be opened through EGL ({error}); on Debian or Ubuntu install the "
                        "packages libegl1 libgl1-mesa-dri") from None


@functools.cache
def _context() -> tuple[Any, int]:
    """The process's only context (several would have to be switched by hand), and the process."""
    context = _open()
    context.front_face = "cw"       # row 0 on top mirrors the picture, and with it the winding
    return context, os.getpid()


class Renderer:
    """Buffers and programs for square pictures of one size. Not for use across threads."""

    def __init__(self, size: int, samples: int) -> None:
        import moderngl

        self.size = size
        ctx = self.ctx = _context()[0]
        self._programs = {
            "colour": ctx.program(vertex_shader=shaders.VERTEX, fragment_shader=shaders.COLOUR_FRAGMENT.replace(
                "SHADOW_BIAS", "0.0015")),
            "truth": ctx.program(vertex_shader=shaders.VERTEX, fragment_shader=shaders.TRUTH_FRAGMENT),
            "alone": ctx.program(vertex_shader=shaders.VERTEX, fragment_shader=shaders.ALONE_FRAGMENT),
            "shadow": ctx.program(vertex_shader=shaders.SHADOW_VERTEX,
                                  fragment_shader=shaders.SHADOW_FRAGMENT),
            "sky": ctx.program(vertex_shader=shaders.SKY_VERTEX, fragment_shader=shaders.SKY_FRAGMENT),
        }
        shape = (size, size)
        samples = min(samples, ctx.info.get("GL_MAX_SAMPLES", samples) or 0)
        self._multi = ctx.framebuffer([ctx.renderbuffer(shape, 4, samples=samples if samples > 1 else 0)],
                                      ctx.depth_renderbuffer(shape, samples=samples if samples > 1 else 0))
        self._resolved = ctx.framebuffer([ctx.renderbuffer(shape, 4)])
        self._truth = ctx.framebuffer([ctx.renderbuffer(shape, 1), ctx.renderbuffer(shape, 1, dtype="f4")],
                                      ctx.depth_renderbuffer(shape))
        self._alone = ctx.framebuffer([ctx.renderbuffer(shape, 4), ctx.renderbuffer(shape, 4)])
        self._shadow_map = ctx.depth_texture((SHADOW_SIZE, SHADOW_SIZE))
        self._shadow_map.compare_func = "<="
        self._shadow_map.filter = (moderngl.LINEAR, moderngl.LINEAR)
        self._shadow_map.repeat_x = self._shadow_map.repeat_y = False
        values = np.random.Generator(np.random.Philox(key=0)).integers(0, 256, (256, 256), np.uint8)
        self._noise = ctx.texture((256, 256), 1, values.tobytes())
        self._noise.filter = (moderngl.LINEAR, moderngl.LINEAR)
        self._shadow = ctx.framebuffer(depth_attachment=self._shadow_map)
        corners = ctx.buffer(np.array([-1, -1, 1, -1, -1, 1, 1, 1], np.float32).tobytes())
        self._sky = ctx.vertex_array(self._programs["sky"], [(corners, "2f", "in_corner")])
        self._blend_max = moderngl.MAX
        self._depth_test, self._blend = moderngl.DEPTH_TEST, moderngl.BLEND
        self._cull_face = moderngl.CULL_FACE
        self._strip = moderngl.TRIANGLE_STRIP
        self._capacity = (0, 0)
        self._vertices: Any = None
        self._faces: Any = None
        self._arrays: dict[str, Any] = {}

    def _reserve(self, vertex_bytes: int, face_bytes: int) -> None:
        """Grows the buffers when a scene needs more than the largest so far."""
        if vertex_bytes <= self._capacity[0] and face_bytes <= self._capacity[1]:
            return
        if self._capacity != (0, 0):
            for item in (*self._arrays.values(), self._vertices, self._faces):
                item.release()
        self._capacity = (max(int(vertex_bytes * 1.5), 1 << 20), max(int(face_bytes * 1.5), 1 << 19))
        self._vertices = self.ctx.buffer(reserve=self._capacity[0], dynamic=True)
        self._faces = self.ctx.buffer(reserve=self._capacity[1], dynamic=True)
        layouts = {"colour": ("3f 3f 3f 1f 2f", ("in_position", "in_normal", "in_colour", "in_gloss", "in_kind")),
                   "truth": ("3f 28x 2f", ("in_position", "in_kind")),
                   "alone": ("3f 28x 2f", ("in_position", "in_kind")),
                   "shadow": ("3f 36x", ("in_position",))}
        self._arrays = {name: self.ctx.vertex_array(self._programs[name],
                                                    [(self._vertices, layout, *names)],
                                                    index_buffer=self._faces, index_element_size=4)
                        for name, (layout, names) in layouts.items()}

    def _set(self, program: str, values: dict[str, Any]) -> None:
        members = self._programs[program]
        for name, value in values.items():
            if name in members:
                uniform = members[name]
                if isinstance(value, np.ndarray):
                    # GLSL matrices are stored by columns.
                    data = value.T if value.shape == (4, 4) else value
                    uniform.write(np.ascontiguousarray(data, np.float32).tobytes())
                else:
                    uniform.value = value

    def _render(self, program: str, drawing: Drawing) -> None:
        """Objects, without their back faces when they are closed, then the rest."""
        split = 3 * drawing.object_faces
        if drawing.closed:
            self.ctx.enable(self._cull_face)
        self._arrays[program].render(vertices=split)
        self.ctx.disable(self._cull_face)
        self._arrays[program].render(vertices=drawing.faces.size - split, first=split)

    def truth(self, view: View, drawing: Drawing, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Depth [H, W], instances [H, W] and each object's pixels alone [N]; uploads the drawing."""
        ctx = self.ctx
        vertices = np.ascontiguousarray(drawing.vertices, np.float32)
        faces = np.ascontiguousarray(drawing.faces, np.int32)
        self._reserve(vertices.nbytes, faces.nbytes)
        self._vertices.write(vertices)
        self._faces.write(faces)
        forward = np.append(view.rotation[2], -view.rotation[2] @ view.position)
        shared = {"view_projection": projection(view, self.size), "forward": forward}
        self._set("truth", shared)
        self._set("alone", shared)
        ctx.disable(self._blend)
        ctx.enable(self._depth_test)
        self._truth.use()
        self._truth.clear(0.0, 0.0, 0.0, 0.0, depth=1.0)
        self._render("truth", drawing)
        instances = np.frombuffer(self._truth.read(components=1, attachment=0), np.uint8)
        depth = np.frombuffer(self._truth.read(components=1, attachment=1, dtype="f4"), np.float32)
        ctx.disable(self._depth_test)
        ctx.enable(self._blend)
        ctx.blend_equation = self._blend_max
        self._alone.use()
        self._alone.clear(0.0, 0.0, 0.0, 0.0)
        self._arrays["alone"].render(vertices=3 * drawing.object_faces)
        groups = [np.frombuffer(self._alone.read(components=4, attachment=k), np.uint32)
                  for k in range(2 if count > 4 else 1)]
        alone = np.array([np.count_nonzero(groups[i // 4] & np.uint32(255 << 8 * (i % 4)))
                          for i in range(count)], np.int64)
        ctx.disable(self._blend)
        shape = (self.size, self.size)
        return np.where(depth > 0, depth, np.inf).reshape(shape), instances.reshape(shape), alone

    def colour(self, view: View, drawing: Drawing) -> UInt8[np.ndarray, "H W 3"]:
        """The picture of the drawing that `truth` has uploaded last."""
        ctx = self.ctx
        light_projection = _light_projection(drawing.light, drawing.light_center, drawing.light_radius)
        clip = projection(view, self.size)
        ctx.enable(self._depth_test)
        self._shadow.use()
        self._shadow.clear(depth=1.0)
        self._set("shadow", {"light_projection": light_projection})
        self._arrays["shadow"].render(vertices=3 * drawing.caster_faces)
        self._multi.use()
        self._multi.clear(0.0, 0.0, 0.0, depth=1.0)
        self._shadow_map.use(0)
        self._noise.use(1)
        self._set("colour", {"view_projection": clip, "light_projection": light_projection,
                             "eye": view.position, "light": drawing.light, "shadow_map": 0, "noise_map": 1,
                             **drawing.uniforms})
        self._render("colour", drawing)
        self._set("sky", {"inverse_view_projection": np.linalg.inv(clip), "eye": view.position,
                          "zenith": drawing.sky[0], "horizon": drawing.sky[1]})
        self._sky.render(self._strip)
        ctx.copy_framebuffer(self._resolved, self._multi)
        data = self._resolved.read(components=3, alignment=1)
        return np.frombuffer(data, np.uint8).reshape(self.size, self.size, 3)


@functools.cache
def _renderer(size: int, samples: int) -> Renderer:
    return Renderer(size, samples)


def renderer(size: int, samples: int) -> Renderer:
    """The process's renderer for pictures of `size` pixels.

    Raises UserError without moderngl or OpenGL, and in a process forked after rendering began.
    """
    if _context()[1] != os.getpid():
        raise UserError("rendering has begun before this process was forked, and OpenGL does not survive a "
                        'fork; start worker processes with multiprocessing\'s "spawn" or "forkserver"')
    return _renderer(size, samples)
