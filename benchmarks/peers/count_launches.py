"""What eager PyTorch would have a GPU do in a step of the workloads of train_peer.py, counted on the CPU: the operators
that do something, each at least one kernel. A foreach operator of the optimizer counts once, as one does on a GPU, and
attention by the plain operators, which the fake CUDA of our tests has too. Prints one JSON line."""
import collections
import json

import peer_common
import train_peer

STEPS = 4
# What only looks at memory in another way, or asks for some.
VIEWS = {"view", "t", "transpose", "as_strided", "empty", "empty_strided", "empty_like", "reshape", "select", "slice",
         "expand", "unsqueeze", "squeeze", "detach", "detach_", "alias", "_unsafe_view", "unbind", "split", "chunk",
         "narrow", "permute", "result_type", "resolve_conj", "resolve_neg", "lift_fresh", "unflatten", "flatten",
         "_reshape_alias", "view_as", "expand_as", "_local_scalar_dense", "item", "resize_", "is_nonzero",
         "set_", "to", "contiguous", "as_strided_", "numpy_T"}


def launches_of(event, counts):
    name = event.name.removeprefix("aten::")
    children = [child for child in event.cpu_children if child.name.startswith("aten::")]
    if not event.name.startswith("aten::"):
        for child in event.cpu_children:
            launches_of(child, counts)
    elif name.startswith("_foreach") or name.startswith("_fused"):
        counts[name] += 1
    elif any([launches_of(child, counts) for child in children]):
        pass  # it is made of them
    elif name not in VIEWS:
        counts[name] += 1
    else:
        return False
    return True


def step_of(kind, clip):
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    model = train_peer.build_model(kind)
    optimizer = torch.optim.AdamW(peer_common.decay_groups(model), lr=1e-3, weight_decay=0.01, foreach=True)
    if kind == "gpt":
        inputs, targets = torch.randint(0, 256, (8, 128)), torch.randint(0, 256, (8, 128))
    else:
        inputs, targets = torch.rand(8, 1, 28, 28), torch.randint(0, 10, (8,))

    def step():
        optimizer.zero_grad()
        with sdpa_kernel(SDPBackend.MATH):
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()

    return step


def count(kind, clip):
    from torch.profiler import ProfilerActivity, profile

    step = step_of(kind, clip)
    step()
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(STEPS):
            step()
    counts = collections.Counter()
    for event in profiler.events():
        if event.cpu_parent is None:
            launches_of(event, counts)
    return {name: n / STEPS for name, n in sorted(counts.items())}


def main():
    import torch

    result = {"torch": torch.__version__}
    for kind in ("mlp", "cnn", "gpt"):
        for clip in (False, True):
            of = count(kind, clip)
            result[kind + (" clip" if clip else "")] = {"launches": sum(of.values()), "of": of}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
