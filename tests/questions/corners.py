"""Right answers by another route: from the eight corners of each box alone, without the library's predicates."""

import numpy as np

SIGNS = [(-1, -1, -1), (1, -1, -1), (1, 1, -1), (-1, 1, -1), (-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1)]


class Corners:
    """An object as its eight corners (Omni3D's order): faces by index, nothing by rotation."""

    def __init__(self, points, bbox):
        self.points, self.bbox = np.array(points, float), np.array(bbox, float)
        self.center = self.points.mean(0)
        self.front, self.left = self.face(1, 2, 5, 6), self.face(4, 5, 6, 7)
        self.up = self.face(0, 1, 4, 5)

    def face(self, *indices):
        """Unit vector from the centre to the centre of a face."""
        vector = self.points[list(indices)].mean(0) - self.points.mean(0)
        return vector / np.linalg.norm(vector)

    def side_of(self, point):
        """The face whose direction is nearest to that of a point, among the four upright ones."""
        direction = point - self.center
        scores = {"front": self.front, "back": -self.front, "left": self.left, "right": -self.left}
        return max(scores, key=lambda side: scores[side] @ direction)


class Picture:
    """The boxes of a picture, each with its 2D box as shares of width and height, and the vertical."""

    def __init__(self, objects, up):
        self.objects, self.up = objects, np.array(up, float) / np.linalg.norm(up)
        # Away from the viewer and to the right, both horizontal: z less its vertical part, then a cross product.
        ahead = np.array([0, 0, 1.0])
        side = np.array([1.0, 0, 0]) - self.up[0] * self.up
        self.right = side / np.linalg.norm(side)
        self.forward = np.cross(self.up, self.right)
        assert self.forward @ ahead > 0

    @classmethod
    def of_scene(cls, scene):
        """From a hand-made scene whose gravity is known."""
        sides = np.array([scene.camera.width, scene.camera.height] * 2)
        objects = []
        for o in scene.objects:
            axes = [o.box.rotation[:, k] * o.box.size[k] / 2 for k in range(3)]
            points = [o.box.center + sum(s * a for s, a in zip(sign, axes, strict=True)) for sign in SIGNS]
            objects.append(Corners(points, o.bbox2d / sides))
        return cls(objects, -scene.camera.gravity)

    def pointed(self, question):
        """The objects in a question's regions."""
        found = []
        for region in question.regions:
            gaps = [np.abs(o.bbox - region.bbox).max() for o in self.objects]
            assert min(gaps) < 1e-3
            found.append(self.objects[int(np.argmin(gaps))])
        return found

    def answer(self, question):
        """The right answer as "first", a side, "same" ..."""
        o, kind = self.pointed(question), question.type
        if kind == "closer_to_camera":
            return "first" if np.linalg.norm(o[0].center) < np.linalg.norm(o[1].center) else "second"
        if kind == "closer_to_object":
            near = [np.linalg.norm(x.center - o[0].center) for x in o[1:]]
            return "first" if near[0] < near[1] else "second"
        if kind == "facing_camera":
            return o[0].side_of(np.zeros(3))
        if kind == "on_which_side":
            return o[0].side_of(o[1].center)
        if kind == "facing_object":
            ahead = [(x.center - o[0].center) / np.linalg.norm(x.center - o[0].center) @ o[0].front for x in o[1:]]
            return "first" if ahead[0] > ahead[1] else "second"
        if kind == "same_direction":
            return "same" if o[0].front @ o[1].front > 0.5 else "different"
        if kind == "higher":
            return "first" if o[0].center @ self.up > o[1].center @ self.up else "second"
        if kind == "left_right":
            return "left" if o[0].bbox[0] + o[0].bbox[2] < o[1].bbox[0] + o[1].bbox[2] else "right"
        axis = {"view_left_right": self.right, "view_above_below": -self.up, "view_front_behind": self.forward}[kind]
        words = {"view_left_right": ("left", "right"), "view_above_below": ("above", "below"),
                 "view_front_behind": ("front", "behind")}[kind]  # fmt: skip
        return words[int(o[0].center @ axis > o[1].center @ axis)]
