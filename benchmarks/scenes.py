"""Render random rooms as aligned images, depth, surface normals and segmentations.

    pip install pybullet
    python -m benchmarks.scenes --output FOLDER

`<output>/<train or val>/<image, depth, normals or labels>/<number>.png` is what
`sslzoo.data.MultiViewFolder` reads, and `scenes/<number>.json` has the parameters of the scene.
Images are RGB; depth is the distance along the optical axis in millimeters, 16 bits; normals are
RGB, 0..255 for -1..1, with x to the right, y up and z to the camera; labels are the positions in
`CLASSES`. A scene is a function of (seed, part, number) alone, for any number of workers.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

CLASSES = (
    "wall", "floor", "ceiling", "picture", "door", "table", "chair", "cabinet", "sofa", "lamp",
    "box", "vase",
)  # fmt: skip
COLORS = {
    "red": (0.8, 0.15, 0.15), "orange": (0.9, 0.5, 0.1), "yellow": (0.9, 0.85, 0.2),
    "green": (0.2, 0.6, 0.25), "cyan": (0.2, 0.7, 0.75), "blue": (0.2, 0.3, 0.8),
    "purple": (0.5, 0.25, 0.7), "pink": (0.95, 0.6, 0.7), "brown": (0.5, 0.3, 0.15),
    "white": (0.95, 0.95, 0.95), "gray": (0.5, 0.5, 0.5), "black": (0.12, 0.12, 0.12),
}  # fmt: skip
PATTERNS = ("plain", "stripes", "checks", "noise", "bricks", "dots")
MODALITIES = ("image", "depth", "normals", "labels")
PARTS = {"train": 0, "val": 1}
NEAR, FAR = 0.05, 30.0  # meters
VOID = 255  # where nothing was hit


class Solid(NamedTuple):
    """A box or a cylinder of an object, in the object's own coordinates, in meters.

    `size` is (width, depth, height), `center` the middle; a cylinder has its width as diameter.
    """

    kind: str
    size: tuple[float, float, float]
    center: tuple[float, float, float]


def box(size: tuple[float, float, float], center: tuple[float, float, float]) -> Solid:
    return Solid("box", size, center)


def solids(name: str, width: float, depth: float, height: float) -> list[Solid]:
    """The parts of an object that stands on the floor and fills width x depth x height."""
    thin = 0.06
    if name == "lamp":
        return [
            Solid("cylinder", (width * 0.7, width * 0.7, 0.05), (0, 0, 0.025)),
            Solid("cylinder", (0.05, 0.05, height), (0, 0, height / 2)),
            Solid("cylinder", (width, width, height * 0.25), (0, 0, height * 0.875)),
        ]
    if name == "vase":
        return [
            Solid("cylinder", (width, width, height * 0.65), (0, 0, height * 0.325)),
            Solid("cylinder", (width * 0.5, width * 0.5, height * 0.35), (0, 0, height * 0.825)),
        ]
    if name in ("cabinet", "box"):
        return [box((width, depth, height), (0, 0, height / 2))]
    if name == "sofa":
        seat, arm = height * 0.45, width * 0.1
        return [
            box((width, depth, seat), (0, 0, seat / 2)),
            box((width, depth * 0.25, height), (0, depth * 0.375, height / 2)),
            *(
                box((arm, depth, height * 0.7), (s * (width - arm) / 2, 0, height * 0.35))
                for s in (-1, 1)
            ),
        ]
    top = height if name == "table" else height * 0.5
    x, y = (width - thin) / 2, (depth - thin) / 2
    legs = [box((thin, thin, top), (i * x, j * y, top / 2)) for i in (-1, 1) for j in (-1, 1)]
    plate = box((width, depth, thin), (0, 0, top - thin / 2))
    back = box((width, thin, height - top), (0, y, (height + top) / 2))
    return [*legs, plate] if name == "table" else [*legs, plate, back]


# width, depth and height of each kind of furniture: from, to, in meters
SIZES = {
    "table": ((0.8, 1.6), (0.6, 1.0), (0.5, 0.85)),
    "chair": ((0.4, 0.6), (0.4, 0.6), (0.8, 1.1)),
    "cabinet": ((0.6, 1.3), (0.35, 0.6), (0.9, 2.1)),
    "sofa": ((1.3, 2.1), (0.7, 1.0), (0.7, 1.0)),
    "lamp": ((0.3, 0.55), (0.3, 0.55), (1.2, 1.9)),
    "box": ((0.25, 0.6), (0.25, 0.6), (0.2, 0.55)),
    "vase": ((0.2, 0.4), (0.2, 0.4), (0.35, 0.8)),
}


def paint(rng: np.random.Generator) -> dict[str, Any]:
    """A random named color, its shade, and a pattern."""
    name = str(rng.choice(list(COLORS)))
    shade = np.clip(np.array(COLORS[name]) * rng.uniform(0.8, 1.15), 0, 1)
    pattern = str(rng.choice(PATTERNS))
    return {"color": name, "rgb": [round(float(c), 3) for c in shade], "pattern": pattern}


def draw(seed: int, part: str, number: int) -> dict[str, Any]:
    """Draw the parameters of a scene: room, camera, light and objects, in meters."""
    rng = np.random.default_rng([seed, PARTS[part], number])
    wide, long, high = (rng.uniform(*limits) for limits in ((3.5, 6), (3.5, 6), (2.3, 3.0)))
    view = camera(rng, wide, long, high)
    scene: dict[str, Any] = {
        "seed": seed,
        "part": part,
        "number": number,
        "room": [wide, long, high],
        "surfaces": {name: paint(rng) for name in ("wall", "floor", "ceiling")},
        "camera": view,
        "light": light(rng),
        "objects": [*hung(rng, wide, long), *furniture(rng, wide, long, view["position"])],
    }
    return rounded(scene)


def camera(rng: np.random.Generator, wide: float, long: float, high: float) -> dict[str, Any]:
    """A camera near a corner that looks at a point near the middle of the room."""
    side = rng.choice([-1.0, 1.0], 2)
    eye = [*(side * rng.uniform(0.34, 0.45, 2) * (wide, long)), rng.uniform(1.1, high - 0.5)]
    target = [*(rng.uniform(-0.2, 0.2, 2) * (wide, long)), rng.uniform(0.3, 1.2)]
    return {"position": eye, "target": target, "field_of_view": rng.uniform(55, 80)}


def light(rng: np.random.Generator) -> dict[str, Any]:
    """A distant light from above with its color and the strength of each kind of shading."""
    angle = rng.uniform(0, 2 * math.pi)
    return {
        "direction": [math.cos(angle), math.sin(angle), rng.uniform(0.5, 2)],
        "color": rng.uniform((0.8, 0.75, 0.65), (1, 1, 1)),
        "ambient": rng.uniform(0.5, 0.75),
        "diffuse": rng.uniform(0.3, 0.6),
        "specular": rng.uniform(0, 0.2),
    }


def hung(rng: np.random.Generator, wide: float, long: float) -> Iterator[dict[str, Any]]:
    """A door and up to three pictures, each on a random wall."""
    for name in ["door"] + ["picture"] * int(rng.integers(0, 4)):
        wall = int(rng.integers(4))  # 0, 1: x = -+ wide / 2; 2, 3: y = -+ long / 2
        span, reach = (long, wide) if wall < 2 else (wide, long)
        door = name == "door"
        width = rng.uniform(0.75, 1.0) if door else rng.uniform(0.4, 1.1)
        height = rng.uniform(1.9, 2.1) if door else rng.uniform(0.3, 0.8)
        low = 0.0 if door else rng.uniform(1.0, 1.4)
        along = rng.uniform(-0.5, 0.5) * (span - width)
        across = (reach / 2 - 0.02) * (1 if wall % 2 else -1)
        x, y = (across, along) if wall < 2 else (along, across)
        yield {
            "class": name,
            "position": [x, y, low],
            "size": [width, 0.04, height],
            "yaw": math.pi / 2 if wall < 2 else 0.0,
            **paint(rng),
        }


def furniture(
    rng: np.random.Generator, wide: float, long: float, eye: list[float]
) -> list[dict[str, Any]]:
    """Four to eight objects on the floor that overlap neither each other nor the camera."""
    placed: list[dict[str, Any]] = []
    for _ in range(int(rng.integers(4, 9))):
        name = str(rng.choice(list(SIZES)))
        size = [rng.uniform(*limits) for limits in SIZES[name]]
        yaw, own = rng.uniform(0, 2 * math.pi), paint(rng)
        radius = math.hypot(size[0], size[1]) / 2
        spots = rng.uniform(-0.5, 0.5, (20, 2)) * (wide - 2 * radius, long - 2 * radius)
        for x, y in spots:
            gaps = [
                math.dist((x, y), o["position"][:2]) - math.hypot(*o["size"][:2]) / 2
                for o in placed
            ]
            if min(gaps, default=9.0) > radius and math.dist((x, y), eye[:2]) > radius + 0.6:
                placed.append(
                    {"class": name, "position": [x, y, 0.0], "size": size, "yaw": yaw, **own}
                )
                break
    return placed


def rounded(value: Any) -> Any:
    """Plain values with numbers of four decimals, as they are written and rendered."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [rounded(item) for item in value]
    return round(float(value), 4) if isinstance(value, (float, np.floating)) else value


def write_patterns(folder: Path, side: int = 32) -> dict[str, str]:
    """Write a gray texture per pattern; the color of a surface is multiplied with it."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:side, :side]
    gray = {
        "plain": np.ones((side, side)),
        "stripes": 0.55 + 0.45 * (x // 4 % 2),
        "checks": 0.55 + 0.45 * ((x // 8 + y // 8) % 2),
        "noise": 0.5 + 0.5 * rng.random((side, side)),
        "bricks": np.where((y % 8 == 0) | ((x + 8 * (y // 8 % 2)) % 16 == 0), 0.5, 1.0),
        "dots": np.where(np.hypot(x % 8 - 3.5, y % 8 - 3.5) < 2.5, 0.5, 1.0),
    }
    files = {name: str(folder / f"{name}.png") for name in PATTERNS}
    for name, file in files.items():
        Image.fromarray((gray[name] * 255).astype(np.uint8)).convert("RGB").save(file)
    return files


class Renderer:
    """Renders scenes on the CPU with pybullet's TinyRenderer.

    Args:
        side: side of the images in pixels.
    """

    def __init__(self, side: int) -> None:
        import pybullet

        self.engine, self.side = pybullet, side
        pybullet.connect(pybullet.DIRECT)
        self.folder = tempfile.TemporaryDirectory()  # textures are loaded anew for every scene
        self.files = write_patterns(Path(self.folder.name))

    def __call__(self, scene: dict[str, Any]) -> dict[str, np.ndarray]:
        """The modalities of a scene, uint8 or uint16; counts each object's `pixels` in it."""
        p = self.engine
        p.resetSimulation()
        textures = {name: p.loadTexture(file) for name, file in self.files.items()}
        classes, owners = [], []
        for name, index, solid, look in self._parts(scene):
            half = [extent / 2 for extent in solid["size"]]
            if solid["kind"] == "box":
                shape = p.createVisualShape(p.GEOM_BOX, halfExtents=half)
            else:
                shape = p.createVisualShape(p.GEOM_CYLINDER, radius=half[0], length=2 * half[2])
            turn = p.getQuaternionFromEuler([0, 0, solid["yaw"]])
            body = p.createMultiBody(
                baseVisualShapeIndex=shape, basePosition=solid["center"], baseOrientation=turn
            )
            texture, color = textures[look["pattern"]], [*look["rgb"], 1]
            p.changeVisualShape(body, -1, textureUniqueId=texture, rgbaColor=color)
            classes.append(CLASSES.index(name))
            owners.append(index)
        color, buffer, bodies = self._shoot(scene)
        for index, thing in enumerate(scene["objects"]):
            mine = np.flatnonzero(np.array(owners) == index)
            thing["pixels"] = int(np.isin(bodies, mine).sum())
        depth = FAR * NEAR / (FAR - (FAR - NEAR) * buffer.astype(np.float64))
        labels = np.array([*classes, VOID], dtype=np.uint8)[bodies]  # -1: the last
        return {
            "image": color,
            "depth": np.round(depth * 1000).astype(np.uint16),
            "normals": normals(depth, scene["camera"]["field_of_view"]),
            "labels": labels,
        }

    def _shoot(self, scene: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        p, view, lamp = self.engine, scene["camera"], scene["light"]
        _, _, color, buffer, bodies = p.getCameraImage(
            self.side,
            self.side,
            p.computeViewMatrix(view["position"], view["target"], [0, 0, 1]),
            p.computeProjectionMatrixFOV(view["field_of_view"], 1, NEAR, FAR),
            renderer=p.ER_TINY_RENDERER,
            shadow=1,
            lightDirection=lamp["direction"],
            lightColor=lamp["color"],
            lightDistance=10,
            lightAmbientCoeff=lamp["ambient"],
            lightDiffuseCoeff=lamp["diffuse"],
            lightSpecularCoeff=lamp["specular"],
        )
        return np.ascontiguousarray(color[..., :3]).astype(np.uint8), buffer, bodies

    def _parts(self, scene: dict[str, Any]) -> Iterator[tuple[str, int, dict[str, Any], Any]]:
        """Class, object (-1: the room), placed solid, and look of every part."""
        wide, long, high = scene["room"]
        room = [
            ("floor", (wide, long, 0.1), (0, 0, -0.05)),
            ("ceiling", (wide, long, 0.1), (0, 0, high + 0.05)),
            *(("wall", (0.1, long, high), (s * (wide / 2 + 0.05), 0, high / 2)) for s in (-1, 1)),
            *(("wall", (wide, 0.1, high), (0, s * (long / 2 + 0.05), high / 2)) for s in (-1, 1)),
        ]
        for name, size, center in room:
            solid = {"kind": "box", "size": size, "center": center, "yaw": 0.0}
            yield name, -1, solid, scene["surfaces"][name]
        for index, thing in enumerate(scene["objects"]):
            own, (width, depth, height) = thing["class"], thing["size"]
            parts = (
                [box((width, depth, height), (0, 0, height / 2))]
                if own in ("door", "picture")
                else solids(own, width, depth, height)
            )
            cos, sin = math.cos(thing["yaw"]), math.sin(thing["yaw"])
            for kind, size, (x, y, z) in parts:
                dx, dy, dz = thing["position"]
                center = (dx + cos * x - sin * y, dy + sin * x + cos * y, dz + z)
                solid = {"kind": kind, "size": size, "center": center, "yaw": thing["yaw"]}
                yield own, index, solid, thing


def normals(depth: np.ndarray, field_of_view: float) -> np.ndarray:
    """Surface normals (H, W, 3) uint8 of a depth map (H, W) in meters.

    Each is the cross product of the differences to a neighbor in x and one in y, of the two
    neighbors on either side the one of nearer depth, so that edges stay sharp.
    """
    side = depth.shape[0]
    half = math.tan(math.radians(field_of_view) / 2)
    ray = (np.arange(side) + 0.5) / side * 2 - 1
    points = np.stack([ray * half * depth, -ray[:, None] * half * depth, -depth], 2)
    across, up = nearer_difference(points, 1), -nearer_difference(points, 0)
    out = np.cross(across, up)
    out /= np.maximum(np.linalg.norm(out, axis=2, keepdims=True), 1e-12)
    return np.round((out + 1) * 127.5).astype(np.uint8)


def nearer_difference(points: np.ndarray, axis: int) -> np.ndarray:
    """The forward or backward difference along an axis, whichever changes depth less."""
    steps = np.diff(points, axis=axis)
    first, last = (np.take(steps, [i], axis=axis) for i in (0, -1))
    back = np.concatenate([first, steps], axis=axis)
    forth = np.concatenate([steps, last], axis=axis)
    chosen = np.abs(forth[..., 2:]) < np.abs(back[..., 2:])
    return np.where(chosen, forth, back)


def render_one(task: tuple[str, int], seed: int, side: int, output: Path) -> None:
    """Render and write one scene; each process makes its renderer once."""
    part, number = task
    scene = draw(seed, part, number)
    for modality, array in _renderer(side)(scene).items():
        Image.fromarray(array).save(output / part / modality / f"{number:05}.png")
    (output / part / "scenes" / f"{number:05}.json").write_text(json.dumps(scene) + "\n")


@functools.cache
def _renderer(side: int) -> Renderer:
    return Renderer(side)


def render(output: Path, train: int, val: int, side: int, seed: int, workers: int) -> float:
    """Render all scenes; returns scenes per second."""
    for part in PARTS:
        for folder in (*MODALITIES, "scenes"):
            (output / part / folder).mkdir(parents=True, exist_ok=True)
    (output / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    tasks = [
        (part, i) for part, count in zip(PARTS, (train, val), strict=True) for i in range(count)
    ]
    start = time.perf_counter()
    job = functools.partial(render_one, seed=seed, side=side, output=output)
    if workers > 1:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            pool.map(job, tasks, chunksize=16)
    else:
        list(map(job, tasks))
    return len(tasks) / (time.perf_counter() - start)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scenes", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--train", type=int, default=2000, help="number of training scenes")
    parser.add_argument("--val", type=int, default=500, help="number of held-out scenes")
    parser.add_argument("--side", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args(args)
    speed = render(given.output, given.train, given.val, given.side, given.seed, given.workers)
    print(f"{given.train + given.val} scenes, {speed:.1f} per second")


if __name__ == "__main__":
    main()
