"""headless_service_test.py PROGRAM: trainings' whole lives, and requests that are wrong."""
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import unittest

PROGRAM = sys.argv.pop(1)
LONG = {"steps": 1_000_000_000}


class Service:
    """The program, with its answers and events in lists of their own."""

    def __init__(self):
        self.process = subprocess.Popen([PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.lines, self.answers, self.events = 0, queue.Queue(), queue.Queue()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            message = json.loads(line)
            (self.answers if "answer" in message else self.events).put(message)

    def send(self, line):
        """The answer to a line of bytes."""
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()
        self.lines += 1
        answer = self.answers.get(timeout=60)
        assert answer["line"] == self.lines, answer
        return answer

    def ask(self, do, id=None, **more):
        answer = self.send(json.dumps({"do": do, **({"id": id} if id else {}), **more}).encode())
        assert answer["answer"] == "ok", answer
        return answer

    def error(self, line):
        answer = self.send(line if isinstance(line, bytes) else json.dumps(line).encode())
        assert answer["answer"] == "error", answer
        return answer["text"]

    def wait_for(self, event, id):
        """That event, with those of other kinds and trainings before it left out."""
        while True:
            message = self.events.get(timeout=60)
            if message["id"] != id:
                continue
            if message["event"] == event:
                return message
            assert message["event"] in ("started", "step", "epoch"), message

    def status(self, id):
        return self.ask("status")["trainings"][id]

    def end(self):
        """What was told after the end of the input."""
        self.process.stdin.close()
        assert self.process.wait(timeout=60) == 0
        self.reader.join()
        return [self.events.get() for _ in range(self.events.qsize())]


class HeadlessService(unittest.TestCase):
    def setUp(self):
        self.service = Service()

    def tearDown(self):
        self.service.process.kill()
        self.service.process.wait()
        self.service.reader.join()
        self.service.process.stdout.close()
        self.service.process.stdin.close()

    def test_wrong_requests_end_nothing(self):
        service = self.service
        service.ask("start", "a", options=LONG)
        for line, text in (
                (b"train!", "parse error"), (b"", "parse error"), (b"\xff\xfe", "parse error"),
                (b"[" * 100_000, "parse error"), ([], "array"), ({}, "'do' not found"), ({"do": 5}, "must be string"),
                ({"do": "dance", "id": "a"}, "'dance' is no request"), ({"do": "start"}, "'id' not found"),
                ({"do": "pause", "id": "b"}, "there is no training 'b'"),
                ({"do": "start", "id": "a"}, "training 'a' has not ended"),
                ({"do": "save", "id": "a"}, "'path' not found"),
                ({"do": "start", "id": "b", "options": {"stepz": 5}}, "there is no option 'stepz'"),
                ({"do": "start", "id": "b", "options": {"steps": "5"}}, "must be number")):
            self.assertIn(text, service.error(line))
        self.assertEqual(list(service.ask("status")["trainings"]), ["a"])
        service.wait_for("step", "a")
        self.assertEqual(service.end()[-1]["event"], "ended")

    def test_trainings_run_side_by_side(self):
        service = self.service
        service.ask("start", "long", options={**LONG, "ranks": 2})
        service.ask("start", "short", options={"steps": 200, "seed": 1})
        ended = service.wait_for("ended", "short")
        self.assertEqual((ended["step"], ended["total_steps"]), (200, 200))
        self.assertEqual(service.status("long")["state"], "running")
        service.ask("cancel", "long")
        service.wait_for("cancelled", "long")
        service.ask("start", "long", options={"steps": 10})  # the name is free again
        self.assertEqual(service.wait_for("ended", "long")["step"], 10)

    def test_a_training_pauses_and_goes_on(self):
        service = self.service
        service.ask("start", "a", options={**LONG, "ranks": 2})
        service.wait_for("step", "a")
        service.ask("pause", "a")
        service.wait_for("paused", "a")
        before = service.status("a")
        self.assertEqual(before["state"], "paused")
        self.assertEqual(service.status("a"), before)
        service.ask("resume", "a")
        service.wait_for("resumed", "a")
        while service.wait_for("step", "a")["step"] <= before["step"]:
            pass
        service.ask("stop", "a")
        service.wait_for("ended", "a")
        self.assertEqual(service.status("a")["state"], "ended")

    def test_what_was_saved_is_continued(self):
        service = self.service
        with tempfile.TemporaryDirectory() as work:
            path, file = os.path.join(work, "saved"), os.path.join(work, "file")
            with open(file, "w"):
                pass
            service.ask("start", "a", options={**LONG, "ranks": 2})
            while (step := service.wait_for("step", "a")["step"]) < 10:
                pass
            service.ask("save", "a", path=path)
            self.assertEqual(service.wait_for("saved", "a")["path"], path)
            self.assertIn("model.safetensors", os.listdir(path))
            service.ask("save", "a", path=os.path.join(file, "saved"))  # a folder in a file
            self.assertIn(file, service.wait_for("save_failed", "a")["text"])
            service.wait_for("step", "a")
            service.ask("stop", "a")
            service.wait_for("ended", "a")
            self.assertIn("has ended", service.error({"do": "save", "id": "a", "path": path}))

            service.ask("start", "b", options={"steps": 5, "ranks": 2, "resume": path})  # which were done already
            self.assertGreaterEqual(service.wait_for("ended", "b")["step"], step)

    def test_a_training_that_fails_is_told_of(self):
        service = self.service
        service.ask("start", "good", options=LONG)
        service.ask("start", "bad", options={"lr": 1e300, "ranks": 2})
        self.assertIn("the loss is not finite; try a smaller lr", service.wait_for("failed", "bad")["text"])
        self.assertIn("not finite", service.status("bad")["error"])
        service.ask("start", "bad", options={"resume": "/no/such"})
        self.assertIn("/no/such", service.wait_for("failed", "bad")["text"])
        service.ask("start", "bad", options={"ranks": 1_000_000})
        self.assertIn("use 1 to 1024 ranks", service.wait_for("failed", "bad")["text"])
        service.ask("start", "bad", options={"steps": 10})
        service.wait_for("ended", "bad")
        self.assertEqual(service.status("good")["state"], "running")

    def test_quit_and_the_end_of_the_input_stop_all(self):
        service = self.service
        service.ask("start", "a", options=LONG)
        service.ask("start", "b", options=LONG)
        service.wait_for("step", "a")
        service.ask("pause", "a")
        service.ask("quit")
        self.assertEqual(service.process.wait(timeout=60), 0)  # with its input open
        ends = sorted(message["id"] for message in service.end() if message["event"] == "ended")
        self.assertEqual(ends, ["a", "b"])


unittest.main(verbosity=2)
