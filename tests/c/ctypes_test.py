#!/usr/bin/env python3
"""The C interface, from Python with ctypes: ctypes_test.py LIBTANDEM_SHARED PLUGIN."""
import ctypes as c
import sys
import time


class Config(c.Structure):
    _fields_ = [("size", c.c_size_t), ("gpus", c.c_int32), ("cpu", c.c_int32), ("seed", c.c_uint64),
                ("gradient_accumulation_steps", c.c_int32), ("reserved", c.c_int32),
                ("checkpoint_directory", c.c_char_p), ("checkpoint_limit", c.c_int64)]


class Progress(c.Structure):
    _fields_ = [("state", c.c_int32), ("reserved", c.c_int32), ("epoch", c.c_int64), ("step", c.c_int64),
                ("epoch_step", c.c_int64), ("epoch_steps", c.c_int64), ("total_steps", c.c_int64),
                ("loss", c.c_double), ("steps_per_second", c.c_double), ("seconds_left", c.c_double)]


class Event(c.Structure):
    _fields_ = [("kind", c.c_int32), ("reserved", c.c_int32), ("left_out", c.c_int64), ("progress", Progress),
                ("text", c.c_char_p)]


class Tensor(c.Structure):
    _fields_ = [("name", c.c_char_p), ("data", c.c_void_p), ("shape", c.POINTER(c.c_int64)), ("dims", c.c_int32),
                ("type", c.c_int32), ("bytes", c.c_size_t)]


OnEvent = c.CFUNCTYPE(None, c.POINTER(Event), c.c_void_p)
ENDED, EVENT_STEP, EVENT_ENDED = 6, 1, 7


def main():
    tandem = c.CDLL(sys.argv[1], mode=c.RTLD_GLOBAL)
    tandem.tandem_last_error.restype = c.c_char_p
    c.CDLL(sys.argv[2]).register_trainings()

    def call(name, *arguments):
        if getattr(tandem, name)(*arguments) != 0:
            raise RuntimeError(f"{name}: {tandem.tandem_last_error().decode()}")

    kinds = []
    on_event = OnEvent(lambda event, user: kinds.append(event.contents.kind))
    session, config, progress = c.c_void_p(), Config(), Progress()
    tandem.tandem_config_init(c.byref(config))
    assert config.size == c.sizeof(Config), (config.size, c.sizeof(Config))
    config.cpu = 2
    call("tandem_session_new", on_event, None, c.byref(session))
    try:
        call("tandem_session_start", session, b"no such", None, c.byref(config))
        raise AssertionError("an unknown training was started")
    except RuntimeError as error:
        assert "no training is known as 'no such'" in str(error), error

    call("tandem_session_start", session, b"fit", b"2000", c.byref(config))
    seen = set()
    while progress.state != ENDED:
        call("tandem_session_progress", session, c.byref(progress))
        seen.add(progress.step)
        time.sleep(0.001)
    call("tandem_session_wait", session)
    call("tandem_session_progress", session, c.byref(progress))
    assert (progress.step, progress.total_steps) == (2000, 2000), (progress.step, progress.total_steps)
    assert progress.loss < 1e-6 and len(seen) > 2, (progress.loss, len(seen))

    snapshot, tensor = c.c_void_p(), Tensor()
    call("tandem_session_snapshot", session, c.byref(snapshot))
    call("tandem_snapshot_tensor", snapshot, c.c_size_t(0), c.c_size_t(0), c.byref(tensor))
    weights = (c.c_float * (tensor.bytes // 4)).from_address(tensor.data)
    assert (tensor.name, tensor.shape[0], tensor.shape[1], len(weights)) == (b"weight", 1, 4, 4)
    assert all(abs(weight) < 3 for weight in weights), list(weights)
    tandem.tandem_snapshot_free(snapshot)
    for _ in range(1000):
        if EVENT_ENDED in kinds:
            break
        time.sleep(0.01)
    tandem.tandem_session_free(session)
    assert EVENT_STEP in kinds and EVENT_ENDED in kinds, kinds


main()
