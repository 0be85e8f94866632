#!/usr/bin/env python3
"""make_shapes.py FOLDER [COUNT] [SHAPE ...]: draws COUNT pictures (default 200) of each shape (default: circle square
triangle; also: cross, ring) into FOLDER/train, and a fifth as many into FOLDER/val, as PNGs of 64 x 64 pixels with a
folder a class: something to try `./train --data-dir` with. Needs nothing but Python; draws the same each time."""
import pathlib
import random
import struct
import sys
import zlib

SIZE = 64


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels):
    """The bytes of a PNG, of rows of red, green and blue bytes."""
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 8, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def is_within(shape, x, y):
    """Whether a point is in the shape, whose square goes from -1 to 1."""
    if max(abs(x), abs(y)) > 1:
        return False
    return {"circle": x * x + y * y <= 1,
            "square": True,
            "triangle": abs(x) <= (y + 1) / 2,
            "cross": min(abs(x), abs(y)) <= 0.3,
            "ring": 0.5 <= x * x + y * y <= 1}[shape]


def draw(shape, chance):
    """The shape in some colour, somewhere on a dark and noisy ground."""
    half = chance.uniform(SIZE / 6, SIZE / 3)
    left, top = chance.uniform(half, SIZE - half), chance.uniform(half, SIZE - half)
    colour = [chance.randrange(120, 256) for _ in range(3)]
    noise = chance.randbytes(3 * SIZE * SIZE)
    pixels = []
    for y in range(SIZE):
        row = bytearray()
        for x in range(SIZE):
            ground = noise[3 * (y * SIZE + x):3 * (y * SIZE + x) + 3]
            row += bytes(colour) if is_within(shape, (x - left) / half, (y - top) / half) else bytes(v // 3 for v in ground)
        pixels.append(bytes(row))
    return png(pixels)


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder, count = pathlib.Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200
    for shape in sys.argv[3:] or ["circle", "square", "triangle"]:
        chance = random.Random(shape)
        for part, pictures in (("train", count), ("val", count // 5)):
            place = folder / part / shape
            place.mkdir(parents=True, exist_ok=True)
            for i in range(pictures):
                (place / f"{i:04}.png").write_bytes(draw(shape, chance))


main()
