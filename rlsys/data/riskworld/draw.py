"""Draws a scene as an icon above a written word, with random variation."""

from __future__ import annotations

from math import cos, pi, sin
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rlsys.data.riskworld.scene import Scene

WIDTH, ICON_HEIGHT, STRIP_HEIGHT = 56, 56, 28
FONT_SIZE = 19

Points = list[tuple[float, float]]

RGB = {
    "red": (214, 40, 40),
    "green": (40, 170, 70),
    "blue": (45, 80, 220),
    "yellow": (240, 205, 40),
}


def _round(
    x: float, y: float, rx: float, ry: float, start: float = 0.0, end: float = 1.0
) -> Points:
    """Points of an ellipse, from ``start`` to ``end`` turns clockwise."""
    steps = 14
    angles = [2 * pi * (start + (end - start) * i / steps) for i in range(steps + 1)]
    return [(x + rx * cos(a), y + ry * sin(a)) for a in angles]


def _bar(left: float, top: float, right: float, bottom: float) -> Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _aslant(points: Points) -> Points:
    """Turned by an eighth, from the upper left to the lower right."""
    half = cos(pi / 4)
    return [(half * (x + y), half * (y - x)) for x, y in points]


# Polygons on a canvas of -1..1, y down; fill "main" is the scene's colour.
SHAPES: dict[str, list[tuple[str, Points]]] = {
    "cup": [
        ("main", _round(0.5, -0.05, 0.45, 0.42)),
        ("paper", _round(0.5, -0.05, 0.24, 0.22)),
        ("main", [(-0.75, -0.7), (0.5, -0.7), (0.3, 0.75), (-0.55, 0.75)]),
    ],
    "box": [
        ("main", _bar(-0.8, -0.8, 0.8, 0.8)),
        ("dark", _bar(-0.8, -0.15, 0.8, 0.15)),
        ("dark", _bar(-0.15, -0.8, 0.15, 0.8)),
    ],
    "fish": [
        ("main", [(0.25, 0.0), (0.95, -0.6), (0.95, 0.6)]),
        ("main", _round(-0.25, 0.0, 0.7, 0.45)),
        ("dark", _round(-0.6, -0.1, 0.1, 0.1)),
    ],
    "star": [
        (
            "main",
            [
                (0, -0.95),
                (0.24, -0.3),
                (0.95, -0.3),
                (0.38, 0.12),
                (0.6, 0.85),
                (0, 0.42),
                (-0.6, 0.85),
                (-0.38, 0.12),
                (-0.95, -0.3),
                (-0.24, -0.3),
            ],
        ),
    ],
    "tree": [
        ("dark", _bar(-0.14, 0.3, 0.14, 0.95)),
        ("main", [(0.0, -0.95), (0.75, 0.4), (-0.75, 0.4)]),
    ],
    "hat": [
        ("main", _bar(-0.5, -0.7, 0.5, 0.5)),
        ("dark", _bar(-0.5, 0.15, 0.5, 0.4)),
        ("main", _bar(-0.95, 0.4, 0.95, 0.65)),
    ],
    "moon": [
        ("main", _round(-0.05, 0.0, 0.8, 0.8)),
        ("paper", _round(0.35, -0.1, 0.65, 0.65)),
    ],
    "pill": [
        ("main", _round(-0.5, 0.0, 0.35, 0.35)),
        ("white", _round(0.5, 0.0, 0.35, 0.35)),
        ("main", _bar(-0.5, -0.35, 0.0, 0.35)),
        ("white", _bar(0.0, -0.35, 0.5, 0.35)),
    ],
    "spray": [
        ("main", _bar(-0.4, -0.4, 0.4, 0.95)),
        ("dark", _bar(-0.2, -0.75, 0.2, -0.4)),
        ("dark", [(0.2, -0.7), (0.85, -0.95), (0.85, -0.4)]),
        ("white", _bar(-0.4, 0.1, 0.4, 0.5)),
    ],
    "key": [  # aslant: upright it is as narrow as the spray, lying as flat as the pill
        ("main", _aslant(_round(0.0, -0.5, 0.62, 0.62))),
        ("paper", _aslant(_round(0.0, -0.5, 0.36, 0.36))),
        ("main", _aslant(_bar(-0.15, 0.1, 0.15, 1.15))),
        ("main", _aslant(_bar(0.1, 0.85, 0.5, 1.05))),
    ],
    "gun": [
        ("main", _bar(-0.9, -0.6, 0.9, -0.15)),
        ("main", [(0.3, -0.15), (0.85, -0.15), (0.9, 0.85), (0.45, 0.85)]),
        ("dark", _bar(-0.1, -0.15, 0.3, 0.2)),
    ],
    "bomb": [
        ("main", _round(-0.1, 0.25, 0.65, 0.65)),
        ("dark", [(0.1, -0.5), (0.4, -0.3), (0.3, -0.1), (0.0, -0.3)]),
        ("dark", [(0.2, -0.4), (0.6, -0.85), (0.7, -0.75), (0.3, -0.3)]),
        ("white", _round(0.7, -0.8, 0.2, 0.2)),
    ],
}


def draw(scene: Scene, seed: int) -> Image.Image:
    """RGB, 56 x 84 pixels. Position, size, angle, shades and noise follow ``seed``."""
    rng = Random(seed)
    paper = _shade((200, 200, 200), rng, 25)
    fills = {
        "main": _shade(RGB[scene.colour], rng, 14),
        "dark": _shade((40, 40, 40), rng, 15),
        "white": _shade((242, 242, 242), rng, 8),
        "paper": paper,
    }
    image = Image.new("RGB", (WIDTH, ICON_HEIGHT + STRIP_HEIGHT), paper)
    pen = ImageDraw.Draw(image)
    scale, angle = rng.uniform(20, 25), rng.uniform(-0.18, 0.18)
    x0, y0 = WIDTH / 2 + rng.uniform(-3, 3), ICON_HEIGHT / 2 + rng.uniform(-3, 3)
    c, s = scale * cos(angle), scale * sin(angle)
    for fill, points in SHAPES[scene.icon]:
        pen.polygon([(x0 + c * x - s * y, y0 + s * x + c * y) for x, y in points], fill=fills[fill])
    pen.rectangle(
        (0, ICON_HEIGHT, WIDTH, ICON_HEIGHT + STRIP_HEIGHT), fill=_shade((238, 238, 230), rng, 12)
    )
    at = (
        WIDTH / 2 + rng.uniform(-0.7, 0.7),
        ICON_HEIGHT + STRIP_HEIGHT / 2 + rng.uniform(-0.7, 0.7),
    )
    ink = _shade((30, 30, 30), rng, 25)
    # Bold strokes: a small vision tower is slow to learn thin ones that move by a pixel.
    pen.text(at, scene.word.upper(), ink, _FONT, anchor="mm", stroke_width=1, stroke_fill=ink)
    noise = np.random.default_rng(seed).integers(-10, 11, (image.height, image.width, 1))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def _shade(colour: tuple[int, int, int], rng: Random, by: int) -> tuple[int, int, int]:
    """The colour, lighter or darker by at most ``by`` of 255."""
    change = rng.randint(-by, by)
    r, g, b = (min(255, max(0, part + change)) for part in colour)
    return r, g, b


_FONT = ImageFont.load_default(size=FONT_SIZE)
