"""A world of boxes on a floor, seen exactly: depth and masks by intersecting rays with boxes, in closed form."""

import numpy as np

from spatialllm_jax.scene.geometry import rotation_y, viewpoint
from spatialllm_jax.scene.types import Box3D
from spatialllm_jax.sources.pseudo_labels import interfaces
from spatialllm_jax.sources.pseudo_labels.views import mask_box

WIDTH, HEIGHT, FOCAL = 160, 120, 150.0
INTRINSICS = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])


def tilted_down(degrees):
    """Gravity of a camera that looks down by so much."""
    angle = np.radians(degrees)
    return np.array([0.0, np.cos(angle), np.sin(angle)])


def box_on_floor(x, z, size, heading, down, floor):
    """A box that stands `floor` metres below the camera, its front turned by `heading` degrees."""
    up = -down
    ahead = np.array([0.0, 0.0, 1.0]) - up[2] * up
    ahead /= np.linalg.norm(ahead)
    right = np.cross(down, ahead)
    angle = np.radians(heading)
    rotation = rotation_y(np.cos(angle) * right + np.sin(angle) * ahead, up)
    return Box3D(x * right + z * ahead + (floor - size[1] / 2) * down, np.array(size, float), rotation)


def rays():
    """[H, W, 3] with z = 1, by the definition of K."""
    columns, rows = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    return np.stack([(columns - WIDTH / 2) / FOCAL, (rows - HEIGHT / 2) / FOCAL, np.ones_like(rows)], axis=-1)


def see(boxes, down, floor):
    """(depth [H, W], owner [H, W]: index of the box, -1 for the floor, -2 for the sky) by the slab method."""
    view = rays()
    along = view @ down
    depth = np.where(along > 1e-9, floor / np.where(along > 1e-9, along, 1), np.inf)
    owner = np.where(np.isfinite(depth), -1, -2)
    for k, box in enumerate(boxes):
        start, slope = -(box.center @ box.rotation), view @ box.rotation
        slope = np.where(np.abs(slope) < 1e-12, 1e-12, slope)
        ends = np.stack([(-box.size / 2 - start) / slope, (box.size / 2 - start) / slope])
        enter, leave = ends.min(axis=0).max(axis=-1), ends.max(axis=0).min(axis=-1)
        hit = (enter <= leave) & (enter > 0) & (enter < depth)
        depth, owner = np.where(hit, enter, depth), np.where(hit, k, owner)
    return depth, owner


class Oracle:
    """Estimators that know the world; what they say can be replaced one by one."""

    def __init__(self, boxes, down, floor, labels=None):
        self.boxes3d, self.down = boxes, down
        self.depth_map, self.owner = see(boxes, down, floor)
        self.labels = labels or tuple("box" for _ in boxes)
        self.masks = np.stack([self.owner == k for k in range(len(boxes))])
        self.scores, self.mask_scores = np.ones(len(boxes)), np.ones(len(boxes))
        self.orientations = None

    def estimators(self):
        return interfaces.Estimators(self, self, self, self, self, self)

    def picture(self):
        return np.zeros((HEIGHT, WIDTH, 3), np.uint8)

    def tags(self, image):
        return tuple(dict.fromkeys(self.labels))

    def detect(self, image, tags):
        found = np.array([mask_box(mask) if mask.any() else [0, 0, 1, 1] for mask in self.masks], float)
        return interfaces.Detections(found, self.scores, self.labels)

    def segment(self, image, boxes):
        keep = [k for k, box in enumerate(self.detect(image, ()).boxes) if any((box == b).all() for b in boxes)]
        return interfaces.Masks(self.masks[keep], self.mask_scores[keep])

    def depth(self, image):
        return interfaces.DepthMap(self.depth_map)

    def calibrate(self, image, depth, masks):
        return interfaces.Calibration(INTRINSICS, self.down)

    def orient(self, image, boxes, labels):
        if self.orientations is not None:
            return [self.orientations] * len(boxes)
        return [interfaces.Orientation(*viewpoint(box), 1.0) for box in self.boxes3d][: len(boxes)]
