#!/usr/bin/env python3
"""The C interface, from Python with ctypes: ctypes_test.py LIBTANDEM_SHARED PLUGIN PLUGIN."""
import ctypes as c
import os
import sys
import tempfile
import time

OnEvent = c.CFUNCTYPE(None, c.c_void_p, c.c_void_p)
OnWarning = c.CFUNCTYPE(None, c.c_char_p, c.c_void_p)
OnSaved = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
OnSnapshot = c.CFUNCTYPE(None, c.c_int, c.c_void_p, c.c_char_p, c.c_void_p)


def struct(name, /, **fields):
    return type(name, (c.Structure,), {"_fields_": list(fields.items())})


GradScaler = struct("GradScaler", init_scale=c.c_double, growth_factor=c.c_double, backoff_factor=c.c_double,
                    growth_interval=c.c_int64)
GradientReducer = struct("GradientReducer", bucket_bytes=c.c_uint64, first_bucket_bytes=c.c_uint64,
                         gradient_as_bucket_view=c.c_int32, share_gradients=c.c_int32, broadcast_buffers=c.c_int32,
                         static_graph=c.c_int32, check_finite=c.c_int32, reserved=c.c_int32)
DataLoaders = struct("DataLoaders", split_batches=c.c_int32, dispatch_batches=c.c_int32, even_batches=c.c_int32,
                     use_seedable_sampler=c.c_int32, non_blocking=c.c_int32, has_data_seed=c.c_int32,
                     data_seed=c.c_uint64, rng_types=c.c_int32, reserved=c.c_int32)
Config = struct("Config", size=c.c_size_t, gpus=c.c_int32, cpu=c.c_int32, seed=c.c_uint64,
                gradient_accumulation_steps=c.c_int32, sync_with_dataloader=c.c_int32, checkpoint_directory=c.c_char_p,
                checkpoint_limit=c.c_int64, devices=c.POINTER(c.c_int32), device_count=c.c_size_t,
                mixed_precision=c.c_int32, transport=c.c_int32, tf32=c.c_int32, expandable_segments=c.c_int32,
                grad_scaler=GradScaler, threads_per_rank=c.c_int32, pin_threads=c.c_int32, keep_tensor_memory=c.c_int32,
                device_placement=c.c_int32, fused_optimizers=c.c_int32, sharding=c.c_int32,
                scheduler_steps_per_update=c.c_int32, logical_ranks=c.c_int32, gradient_reducer=GradientReducer,
                data_loader=DataLoaders, nvtx_first=c.c_int64, nvtx_last=c.c_int64, timeout=c.c_double,
                on_warning=OnWarning, on_warning_user=c.c_void_p, cancel=c.c_void_p)
SessionOptions = struct("SessionOptions", size=c.c_size_t, on_event=OnEvent, user=c.c_void_p, step_interval=c.c_double,
                        every_epoch=c.c_int32, reserved=c.c_int32)
SaveOptions = struct("SaveOptions", size=c.c_size_t, background=c.c_int32, skip_when_busy=c.c_int32,
                     max_shard_bytes=c.c_uint64)
Progress = struct("Progress", state=c.c_int32, reserved=c.c_int32, epoch=c.c_int64, step=c.c_int64,
                  epoch_step=c.c_int64, epoch_steps=c.c_int64, total_steps=c.c_int64, loss=c.c_double,
                  steps_per_second=c.c_double, seconds_left=c.c_double)
Event = struct("Event", kind=c.c_int32, reserved=c.c_int32, left_out=c.c_int64, progress=Progress, text=c.c_char_p)
Tensor = struct("Tensor", name=c.c_char_p, data=c.c_void_p, shape=c.POINTER(c.c_int64), dims=c.c_int32, type=c.c_int32,
                bytes=c.c_size_t)
ENDED, CANCELLED, EVENT_STEP, EVENT_EPOCH, EVENT_ENDED = 6, 7, 1, 2, 7
OK, CONFIG_ERROR, CHECKPOINT_ERROR, RANK_ERROR = 0, 2, 5, 7

# A value of each number of Config that is not the default, and what is written of it by the training "show".
SET = {
    "cpu": (3, "ranks=3"), "seed": (7, "seed=7"), "gradient_accumulation_steps": (4, "gradient_accumulation_steps=4"),
    "sync_with_dataloader": (0, "sync_with_dataloader=0"), "checkpoint_directory": (b"/a/b", "checkpoint_directory=/a/b"),
    "checkpoint_limit": (3, "checkpoint_limit=3"), "mixed_precision": (1, "computes_in=BFloat16"),
    "transport": (2, "transport=2"), "tf32": (1, "tf32=11"), "expandable_segments": (1, "expandable_segments=1"),
    "grad_scaler.init_scale": (128, "init_scale=128"), "grad_scaler.growth_factor": (3, "growth_factor=3"),
    "grad_scaler.backoff_factor": (0.25, "backoff_factor=0.25"),
    "grad_scaler.growth_interval": (10, "growth_interval=10"), "threads_per_rank": (3, "threads_per_rank=33"),
    "pin_threads": (1, "pin_threads=1"), "keep_tensor_memory": (0, "keep_tensor_memory=0"),
    "device_placement": (0, "device_placement=0"), "fused_optimizers": (0, "fused_optimizers=0"),
    "sharding": (1, "sharding=1"), "scheduler_steps_per_update": (2, "scheduler_steps_per_update=2"),
    "logical_ranks": (4, "logical_ranks=4"),
    "gradient_reducer.bucket_bytes": (1000, "\nbucket_bytes=1000"),
    "gradient_reducer.first_bucket_bytes": (100, "first_bucket_bytes=100"),
    "gradient_reducer.gradient_as_bucket_view": (0, "gradient_as_bucket_view=0"),
    "gradient_reducer.share_gradients": (0, "share_gradients=0"),
    "gradient_reducer.broadcast_buffers": (0, "broadcast_buffers=0"),
    "gradient_reducer.static_graph": (1, "static_graph=1"), "gradient_reducer.check_finite": (1, "check_finite=1"),
    "data_loader.split_batches": (1, "split_batches=1"), "data_loader.dispatch_batches": (1, "dispatch_batches=1"),
    "data_loader.even_batches": (0, "even_batches=0"), "data_loader.use_seedable_sampler": (1, "use_seedable_sampler=1"),
    "data_loader.non_blocking": (0, "non_blocking=0"), "data_loader.has_data_seed": (1, "has_data_seed=1"),
    "data_loader.rng_types": (6, "rng_types=12"), "nvtx_first": (3, "nvtx_first=3"), "nvtx_last": (4, "nvtx_last=4"),
    "timeout": (2.5, "timeout=2500"),
}
# Tried in other ways: below, and in settings_test.c.
OTHERS = {"size", "gpus", "devices", "device_count", "gradient_reducer.reserved", "data_loader.reserved",
          "data_loader.data_seed", "on_warning", "on_warning_user", "cancel"}


def names_of(kind, before=""):
    for name, field in kind._fields_:
        yield from names_of(field, f"{before}{name}.") if issubclass(field, c.Structure) else [before + name]


class Session:
    def __init__(self, **options):
        self.handle, given = c.c_void_p(), SessionOptions()
        tandem.tandem_session_options_init(c.byref(given))
        assert given.size == c.sizeof(SessionOptions)
        for name, value in options.items():
            setattr(given, name, value)
        call("tandem_session_new_with", c.byref(given), c.byref(self.handle))

    def __getattr__(self, name):
        return lambda *arguments: call("tandem_session_" + name, self.handle, *arguments)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        tandem.tandem_session_free(self.handle)

    def run(self, training, options=None, config=None):
        self.start(training, options, c.byref(config or two_ranks()))
        self.wait()

    def where(self):
        progress = Progress()
        self.progress(c.byref(progress))
        return progress


def call(name, *arguments):
    if getattr(tandem, name)(*arguments) != OK:
        raise RuntimeError(f"{name}: {tandem.tandem_last_error().decode()}")


def error_of(call, *arguments):
    try:
        call(*arguments)
    except RuntimeError as error:
        return str(error)
    raise AssertionError("there was no error")


def two_ranks(**settings):
    config = Config()
    tandem.tandem_config_init(c.byref(config))
    assert config.size == c.sizeof(Config), (config.size, c.sizeof(Config))
    config.cpu = 2
    for name, value in settings.items():
        setattr(config, name, value)
    return config


def wait_until(holds):
    for _ in range(20000):
        if holds():
            return
        time.sleep(0.001)
    raise AssertionError("it did not come")


def test_a_training_from_start_to_end():
    kinds = []
    on_event = OnEvent(lambda event, user: kinds.append(c.cast(event, c.POINTER(Event)).contents.kind))
    with Session(on_event=on_event) as session:
        assert "no training is known as 'no such'" in error_of(session.run, b"no such")
        session.start(b"fit", b"2000", c.byref(two_ranks()))
        seen, progress = set(), Progress()
        while progress.state != ENDED:
            progress = session.where()
            seen.add(progress.step)
            time.sleep(0.001)
        session.wait()
        progress = session.where()
        assert (progress.step, progress.total_steps) == (2000, 2000), (progress.step, progress.total_steps)
        assert progress.loss < 1e-6 and len(seen) > 2, (progress.loss, len(seen))

        snapshot, tensor = c.c_void_p(), Tensor()
        session.snapshot(c.byref(snapshot))
        call("tandem_snapshot_tensor", snapshot, c.c_size_t(0), c.c_size_t(0), c.byref(tensor))
        weights = (c.c_float * (tensor.bytes // 4)).from_address(tensor.data)
        assert (tensor.name, tensor.shape[0], tensor.shape[1], len(weights)) == (b"weight", 1, 4, 4)
        assert all(abs(weight) < 3 for weight in weights), list(weights)
        tandem.tandem_snapshot_free(snapshot)
        wait_until(lambda: EVENT_ENDED in kinds)
    assert EVENT_STEP in kinds, kinds


def test_each_field_has_its_effect():
    assert set(names_of(Config)) == SET.keys() | OTHERS, set(names_of(Config)) ^ (SET.keys() | OTHERS)
    with Session() as session, tempfile.TemporaryDirectory() as directory:
        file = os.path.join(directory, "shown")

        def shown(config):
            session.run(b"show", file.encode(), config)
            with open(file) as lines:
                return "\n" + lines.read()

        defaults = shown(two_ranks())
        for name, (value, written) in SET.items():
            config = two_ranks()
            *struct, field = name.split(".")
            setattr(getattr(config, struct[0]) if struct else config, field, value)
            text = shown(config)
            assert written not in defaults and written in text, (name, defaults, text)

        config = two_ranks()
        config.data_loader.has_data_seed, config.data_loader.data_seed = 1, 5
        assert "\ndata_seed=5\n" in shown(config)
        heard = []
        on_warning = OnWarning(lambda text, user: heard.append((text, user)))
        shown(two_ranks(on_warning=on_warning, on_warning_user=7))
        assert heard == [(b"shown", 7)], heard


def test_what_cannot_be_is_refused():
    with Session() as session:
        devices = (c.c_int32 * 2)(1, 2)
        for settings, text in (({"cpu": -1, "gpus": 1}, "no GPU is usable"),
                               ({"cpu": -1, "devices": devices, "device_count": 2}, "no GPU is usable"),
                               ({"devices": devices, "device_count": 2}, "exclude each other"),
                               ({"device_count": 2}, "devices"),
                               ({"devices": devices, "device_count": 2**62}, "use 0 to 1024"),
                               ({"threads_per_rank": 100000}, "threads_per_rank 100000 is out of range"),
                               ({"nvtx_first": 3, "nvtx_last": 2}, "is no range"), ({"size": 48}, "tandem_config_init"),
                               ({"logical_ranks": 3}, "logical_ranks 3 is no power of two"), ({"mixed_precision": 3}, "mixed_precision is 3; use 0 to 2"),
                               ({"timeout": float("nan")}, "timeout is nan")):
            error = error_of(session.run, b"fit", b"1", two_ranks(**settings))
            assert text in error, (settings, error)


def test_a_request_ends_what_was_started_with_it():
    cancel = c.c_void_p()
    call("tandem_cancel_new", c.byref(cancel))
    with Session() as one, Session() as two:
        for session in (one, two):
            session.start(b"fit", None, c.byref(two_ranks(cancel=cancel)))
        call("tandem_cancel_request", cancel)
        for session in (one, two):
            session.wait()
            assert session.where().state == CANCELLED
    tandem.tandem_cancel_free(cancel)


def test_saves_and_snapshots_are_not_waited_for():
    saves, snapshots = [], []
    on_saved = OnSaved(lambda code, text, user: saves.append((code, text)))
    on_snapshot = OnSnapshot(lambda code, snapshot, text, user: snapshots.append((code, snapshot, text)))
    options = SaveOptions()
    tandem.tandem_save_options_init(c.byref(options))
    assert options.size == c.sizeof(SaveOptions)
    options.background = 1
    with Session() as session, tempfile.TemporaryDirectory() as directory:
        where = os.path.join(directory, "state")
        session.start(b"fit", None, c.byref(two_ranks(checkpoint_directory=directory.encode())))
        session.begin_save(where.encode(), c.byref(options), on_saved, None)
        session.begin_save(None, None, on_saved, None)
        session.begin_save(b"/dev/null/state", None, on_saved, None)
        session.begin_snapshot(on_snapshot, None)
        wait_until(lambda: len(saves) == 3 and snapshots)
        saves.sort()
        assert saves[:2] == [(OK, os.path.join(directory, "checkpoint_0").encode()), (OK, where.encode())], saves
        assert saves[2][0] == CHECKPOINT_ERROR and b"/dev/null" in saves[2][1], saves
        assert os.path.exists(os.path.join(where, "model.safetensors"))
        code, snapshot, _ = snapshots[0]
        assert code == OK and tandem.tandem_snapshot_tensors(c.c_void_p(snapshot), c.c_size_t(0)) == 2
        tandem.tandem_snapshot_free(c.c_void_p(snapshot))


def test_every_epoch_has_its_event_for_a_host_that_asks():
    epochs, ended = [], []

    def note(event, _user):
        event = c.cast(event, c.POINTER(Event)).contents
        if event.kind == EVENT_EPOCH:
            epochs.append((event.progress.epoch, event.left_out))
        ended.extend([True] * (event.kind == EVENT_ENDED))

    on_event = OnEvent(note)
    with Session(on_event=on_event, every_epoch=1) as session:
        session.run(b"epochs", b"200")
        wait_until(lambda: ended)
    assert epochs == [(epoch, 0) for epoch in range(200)], epochs


def main():
    global tandem
    tandem = c.CDLL(sys.argv[1], mode=c.RTLD_GLOBAL)
    tandem.tandem_last_error.restype = c.c_char_p
    tandem.tandem_snapshot_tensors.restype = c.c_size_t
    c.CDLL(sys.argv[2]).register_trainings()
    c.CDLL(sys.argv[3]).register_settings_trainings()
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()


main()
