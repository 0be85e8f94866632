"""Compares with Pillow how odd pictures are read. Usage: pictures_test.py READER, a program that reads a folder of them
(tests/python/read_pictures.cpp)."""

import io
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from PIL import Image, ImageFile, ImageOps

from odd_pictures import odd_jpegs, odd_pngs, turned_pictures, webps

# Which have all pixels and no good end, or what is there for one cannot be read.
WITHOUT_GOOD_END = ("no-end", "end-cut", "half-an-end", "no-crc", "crc-of-data-cut", "no-checksum", "garbage", "zeros")


def with_pillow(data, truncated=False):
    """The pixels, or None where Pillow refuses them."""
    ImageFile.LOAD_TRUNCATED_IMAGES = truncated
    try:
        return Image.open(io.BytesIO(data)).convert("RGB").tobytes()
    except (OSError, SyntaxError):
        return None


def difference(a, b):
    return max(abs(x - y) for x, y in zip(a, b)) if len(a) == len(b) else 256


class PicturesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pictures = {f"png-{name}.png": (data, whole) for name, data, whole in odd_pngs()}
        cls.pictures |= {f"jpeg-{name}.jpg": (data, whole) for name, data, whole in odd_jpegs()}
        cls.pictures |= {f"webp-{name}.webp": (data, whole) for name, data, whole in webps()}
        with tempfile.TemporaryDirectory() as directory:
            pictures, pixels = Path(directory, "pictures"), Path(directory, "pixels")
            (pictures / "class").mkdir(parents=True)
            pixels.mkdir()
            for name, (data, _) in cls.pictures.items():
                (pictures / "class" / name).write_bytes(data)
            lines = subprocess.run([READER, pictures, pixels], check=True, stdout=subprocess.PIPE, text=True).stdout
            cls.pixels = {file.name: file.read_bytes() for file in pixels.iterdir()}
        cls.lines = [line.split("\t") for line in lines.splitlines()]

    def said(self, kind):
        return [line for line in self.lines if line[1] == kind]

    def test_what_is_whole_is_read_as_pillow_does(self):
        for name, (data, whole) in self.pictures.items():
            with self.subTest(name):
                if whole is False:
                    self.assertFalse(name in self.pixels)
                    continue
                theirs = with_pillow(data)
                if whole:
                    self.assertTrue(name in self.pixels, [line for line in self.lines if line[0] == name])
                    theirs = theirs or with_pillow(data, truncated=True)
                if theirs and name in self.pixels:
                    self.assertLessEqual(difference(self.pixels[name], theirs), 2 if "jpeg" in name else 0)

    def test_what_pillow_reads_and_this_does_not_is_damaged(self):
        refused = {line[0] for line in self.said("error")}
        theirs = {name for name in refused if with_pillow(self.pictures[name][0]) is not None}
        # Pixels that are lost or wrong, which Pillow gives in grey.
        known = {"jpeg-restart-lost.jpg", "jpeg-progressive-first-bits-lost.jpg", "webp-animated.webp"}
        self.assertEqual(theirs, known)

    def test_exif_turns_pictures_as_pillow_does(self):
        pictures = dict(turned_pictures())
        with tempfile.TemporaryDirectory() as directory:
            source, pixels = Path(directory, "pictures"), Path(directory, "pixels")
            (source / "class").mkdir(parents=True)
            pixels.mkdir()
            for name, data in pictures.items():
                (source / "class" / name).write_bytes(data)
            subprocess.run([READER, source, pixels, "exif"], check=True, stdout=subprocess.PIPE)
            for name, data in pictures.items():
                with self.subTest(name):
                    theirs = ImageOps.exif_transpose(Image.open(io.BytesIO(data)).convert("RGB")).tobytes()
                    ours = (pixels / name).read_bytes()
                    self.assertLessEqual(difference(ours, theirs), 2 if name.endswith("jpeg") else 0)

    def test_errors_name_the_file(self):
        for name, _, text in self.said("error"):
            self.assertIn(f"/{name}: ", text)

    def test_a_warning_comes_once_for_each_without_a_good_end(self):
        names = [line[0] for line in self.said("warning")]
        self.assertEqual(len(names), len(set(names)))
        self.assertEqual([n for n in names if self.pictures[n][1] is False], [])
        for name, (_, whole) in self.pictures.items():
            with self.subTest(name):
                if any(part in name for part in WITHOUT_GOOD_END):
                    self.assertIn(name, names)
                elif "after-data" not in name and "end-with" not in name:
                    self.assertNotIn(name, names)


if __name__ == "__main__":
    READER = sys.argv.pop(1)
    unittest.main()
