"""Reads with TensorBoard what the library writes for it. Usage: tensorboard_test.py WRITER, a program that writes a run
into the folder that it is given (tests/python/write_run.cpp)."""

import io
import math
import subprocess
import sys
import tempfile
import unittest

from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.util import tensor_util

EVERYTHING = {page: 0 for page in ("scalars", "histograms", "images", "text", "hparams")}  # not a sample of it


class TensorBoardTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        subprocess.run([WRITER, cls.directory.name], check=True)
        cls.run_data = EventAccumulator(cls.directory.name, tensor_size_guidance=EVERYTHING)
        cls.run_data.Reload()

    @classmethod
    def tearDownClass(cls):
        cls.directory.cleanup()

    def tensors(self, tag):
        return [(e.step, tensor_util.make_ndarray(e.tensor_proto)) for e in self.run_data.Tensors(tag)]

    def test_pages(self):
        tags = self.run_data.summary_metadata
        pages = {tag: tags[tag].plugin_data.plugin_name for tag in tags}
        self.assertEqual(
            pages,
            {
                "train/loss": "scalars",
                "odd/ü\ufffd": "scalars",
                "weights": "histograms",
                "same": "histograms",
                "eval/worst": "images",
                "eval/worst/captions": "text",
                "sample": "text",
                "eval/confusion": "text",
                "events/checkpoint": "text",
                "_hparams_/session_start_info": "hparams",
                "_hparams_/session_end_info": "hparams",
            },
        )

    def test_scalars(self):
        values = self.tensors("train/loss")
        self.assertEqual([step for step, _ in values], list(range(1, 1001)))
        for step, value in values[:997]:
            self.assertAlmostEqual(float(value), 1 / step, places=6)
        self.assertTrue(math.isnan(values[997][1]))
        self.assertEqual([float(v) for _, v in values[998:]], [math.inf, -math.inf])
        times = [event.wall_time for event in self.run_data.Tensors("train/loss")]
        self.assertEqual(times, sorted(times))
        self.assertGreater(times[0], 1.7e9)

    def test_histograms(self):
        [(step, buckets)] = self.tensors("weights")
        self.assertEqual(step, 3)
        self.assertEqual(buckets.shape[1], 3)
        self.assertEqual(buckets[0][0], 0)
        self.assertEqual(buckets[-1][1], 9)
        self.assertEqual(buckets[:, 2].sum(), 10)
        self.assertEqual(self.tensors("same")[0][1].tolist()[0], [2, 2, 5])

    def test_images(self):
        [(step, value)] = self.tensors("eval/worst")
        self.assertEqual(step, 5)
        self.assertEqual(value[:2].tolist(), [b"3", b"2"])  # width, height
        images = [Image.open(io.BytesIO(png)) for png in value[2:]]
        self.assertEqual([image.size for image in images], [(3, 2), (3, 2)])
        self.assertEqual(list(images[0].tobytes()), [0, 50, 100, 150, 200, 250])
        self.assertEqual(list(images[1].tobytes()), [1, 51, 101, 151, 201, 251])

    def test_texts(self):
        self.assertEqual(self.tensors("sample")[0][1].tolist(), ["Größe: 1\n".encode()])
        self.assertEqual(self.tensors("eval/worst/captions")[0][1].tolist(), [b"1. a four\n1. a five\n"])
        self.assertIn("| cat | 3 | 1 |", self.tensors("eval/confusion")[0][1][0].decode())
        self.assertEqual(self.tensors("events/checkpoint")[0][1].tolist(), [b"checkpoints/1"])

    def test_hyper_parameters(self):
        content = self.run_data.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        start = hparams.parse_session_start_info_plugin_data(content)
        self.assertEqual(start.hparams["lr"].number_value, 1e-3)
        self.assertEqual(start.hparams["batch_size"].number_value, 64)
        self.assertEqual(start.hparams["model"].string_value, "mlp")
        self.assertIs(start.hparams["shuffle"].bool_value, True)
        self.assertGreater(start.start_time_secs, 1.7e9)
        content = self.run_data.summary_metadata["_hparams_/session_end_info"].plugin_data.content
        self.assertEqual(hparams.parse_session_end_info_plugin_data(content).status, 1)  # success


class ResumedRunTest(unittest.TestCase):
    def test_later_steps_of_the_first_run_are_forgotten(self):
        with tempfile.TemporaryDirectory() as directory:
            for first_step in ("0", "500"):
                subprocess.run([WRITER, directory, first_step], check=True)
            data = EventAccumulator(directory, tensor_size_guidance=EVERYTHING)
            data.Reload()
            steps = [event.step for event in data.Tensors("train/loss")]
            self.assertEqual(steps, list(range(1, 1001)))


if __name__ == "__main__":
    WRITER = sys.argv.pop(1)
    unittest.main()
