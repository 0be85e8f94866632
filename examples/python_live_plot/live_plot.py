#!/usr/bin/env python3
"""Shows a training while it runs: its loss, and what the network has learned. Through tandem/c.h, with ctypes.

Usage: live_plot.py TRAININGS [--steps N] [--ranks N] [--devices N,N] [--save FILE]. TRAININGS is the library made of
trainings.cpp, which brings libtandem_shared.so along. With --devices it trains on these GPUs, and leaves that of the
display alone. The space bar pauses and goes on, closing the window ends the training; with --save there is no window,
and the last picture goes to FILE. Needs matplotlib.
"""
import argparse
import ctypes as c
import threading

import numpy as np
from matplotlib import animation, pyplot


def struct(name, /, **fields):
    return type(name, (c.Structure,), {"_fields_": list(fields.items())})


# As tandem/c.h has them.
GradScaler = struct("GradScaler", init_scale=c.c_double, growth_factor=c.c_double, backoff_factor=c.c_double,
                    growth_interval=c.c_int64)
GradientReducer = struct("GradientReducer", bucket_bytes=c.c_uint64, first_bucket_bytes=c.c_uint64,
                         gradient_as_bucket_view=c.c_int32, share_gradients=c.c_int32, broadcast_buffers=c.c_int32,
                         static_graph=c.c_int32, check_finite=c.c_int32, reserved=c.c_int32)
DataLoaders = struct("DataLoaders", split_batches=c.c_int32, dispatch_batches=c.c_int32, even_batches=c.c_int32,
                     use_seedable_sampler=c.c_int32, non_blocking=c.c_int32, has_data_seed=c.c_int32,
                     data_seed=c.c_uint64, rng_types=c.c_int32, reserved=c.c_int32)
OnWarning = c.CFUNCTYPE(None, c.c_char_p, c.c_void_p)
Config = struct("Config", size=c.c_size_t, gpus=c.c_int32, cpu=c.c_int32, seed=c.c_uint64,
                gradient_accumulation_steps=c.c_int32, sync_with_dataloader=c.c_int32, checkpoint_directory=c.c_char_p,
                checkpoint_limit=c.c_int64, devices=c.POINTER(c.c_int32), device_count=c.c_size_t,
                mixed_precision=c.c_int32, transport=c.c_int32, tf32=c.c_int32, expandable_segments=c.c_int32,
                grad_scaler=GradScaler, threads_per_rank=c.c_int32, pin_threads=c.c_int32, keep_tensor_memory=c.c_int32,
                device_placement=c.c_int32, fused_optimizers=c.c_int32, sharding=c.c_int32,
                scheduler_steps_per_update=c.c_int32, logical_ranks=c.c_int32, gradient_reducer=GradientReducer,
                data_loader=DataLoaders, nvtx_first=c.c_int64, nvtx_last=c.c_int64, timeout=c.c_double,
                on_warning=OnWarning, on_warning_user=c.c_void_p, cancel=c.c_void_p)
Progress = struct("Progress", state=c.c_int32, reserved=c.c_int32, epoch=c.c_int64, step=c.c_int64,
                  epoch_step=c.c_int64, epoch_steps=c.c_int64, total_steps=c.c_int64, loss=c.c_double,
                  steps_per_second=c.c_double, seconds_left=c.c_double)
Tensor = struct("Tensor", name=c.c_char_p, data=c.c_void_p, shape=c.POINTER(c.c_int64), dims=c.c_int32, type=c.c_int32,
                bytes=c.c_size_t)


class Session:
    """A training in the background. `losses` has pairs of step and loss, `weights` the latest arrays."""

    def __init__(self, library, training, options, ranks, devices):
        self.tandem = c.CDLL(library)
        self.tandem.tandem_last_error.restype = c.c_char_p
        self.tandem.register_trainings()
        self.losses, self.weights, self.error, self.paused = [], [], None, False
        self.handle, config = c.c_void_p(), Config()
        self.tandem.tandem_config_init(c.byref(config))
        assert config.size == c.sizeof(Config), "this is made for another version of Tandem"
        config.on_warning = self.warned = OnWarning(lambda text, user: print("warning:", text.decode()))
        if devices:
            config.devices, config.device_count = (c.c_int32 * len(devices))(*devices), len(devices)
        else:
            config.cpu = ranks
        self.call("session_new", None, None, c.byref(self.handle))
        self.call("session_start", self.handle, training.encode(), options.encode(), c.byref(config))
        self.watcher = threading.Thread(target=self.watch)  # functions that wait do not belong on the window's thread
        self.watcher.start()

    def call(self, name, *arguments):
        """True when done, False for "not yet"."""
        code = getattr(self.tandem, "tandem_" + name)(*arguments)
        if code not in (0, 8):  # TANDEM_OK, TANDEM_NOT_YET
            raise RuntimeError(self.tandem.tandem_last_error().decode())
        return code == 0

    def watch(self):
        try:
            ended = False
            while not ended:
                ended = self.call("session_wait_for", self.handle, c.c_double(0.05))
                self.look()
        except RuntimeError as error:
            self.error = error

    def look(self):
        progress, snapshot, tensor, weights = Progress(), c.c_void_p(), Tensor(), []
        self.call("session_snapshot", self.handle, c.byref(snapshot))  # between two steps, or of the end
        for i in range(self.tandem.tandem_snapshot_tensors(snapshot, c.c_size_t(0))):
            self.call("snapshot_tensor", snapshot, c.c_size_t(0), c.c_size_t(i), c.byref(tensor))
            values = (c.c_float * (tensor.bytes // 4)).from_address(tensor.data)
            weights.append(np.array(values).reshape(tensor.shape[:tensor.dims]))
        self.tandem.tandem_snapshot_free(snapshot)
        self.weights = weights
        self.call("session_progress", self.handle, c.byref(progress))
        if progress.loss > 0:  # and not NaN, as before the first step
            self.losses.append((progress.step, progress.loss))

    def pause_or_resume(self):
        self.paused = not self.paused
        if self.paused:
            self.call("session_pause", self.handle, 0)
        else:
            self.call("session_resume", self.handle)

    def finish(self):
        self.watcher.join()
        self.tandem.tandem_session_free(self.handle)
        if self.error:
            raise self.error


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("trainings", help="the library made of trainings.cpp")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--devices", type=lambda text: [int(number) for number in text.split(",")], default=[],
                        help="GPUs by their numbers, such as 1,2, instead of ranks on the CPU")
    parser.add_argument("--save", metavar="FILE", help="no window: saves the last picture")
    args = parser.parse_args()

    session = Session(args.trainings, "fit_sine", str(args.steps), args.ranks, args.devices)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    left.set(xlabel="step", ylabel="loss", yscale="log")
    x = np.linspace(-1, 1, 200)[:, None]
    right.plot(x, np.sin(5 * x), "--", color="gray", label="sin(5 x)")
    loss_line, = left.plot([], [])
    net_line, = right.plot([], [], label="network")
    right.legend()

    def draw(_frame):
        if session.losses:
            loss_line.set_data(*zip(*session.losses))
            left.relim()
            left.autoscale_view()
        if session.weights:
            w1, b1, w2, b2 = session.weights
            net_line.set_data(x, np.tanh(x @ w1.T + b1) @ w2.T + b2)

    if args.save:
        session.watcher.join()
        draw(None)
        figure.savefig(args.save)
    else:
        figure.canvas.mpl_connect("key_press_event", lambda event: event.key == " " and session.pause_or_resume())
        shown = animation.FuncAnimation(figure, draw, interval=100, cache_frame_data=False)  # runs while it is held
        pyplot.show()
        session.call("session_request_stop", session.handle)
        del shown
    session.finish()
    print("step {}: loss {:.6f}".format(*session.losses[-1]))


if __name__ == "__main__":
    main()
