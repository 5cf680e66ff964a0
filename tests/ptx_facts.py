"""Compile every kernel for one architecture, without a device, and print what is in it; run by test_cuda.py.

    python ptx_facts.py MAJOR MINOR

prints JSON: for every kernel, its target, counts of operations in the PTX and, where nvJitLink is at hand to assemble
it, registers a thread and bytes spilled.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from typing import Any

import numba.cuda.dispatcher

from scalefield._native.gpu import Kernel
from scalefield._native.gpu_literal import WIDEST, descend_kernel, literal_kernels
from scalefield._native.gpu_reduced import reduced_kernel, reset_kernel

try:
    from cuda.bindings import nvjitlink

    nvjitlink.version()
# Without the library, what is raised depends on the version.
except Exception:
    nvjitlink = None

# (population, rich, kept)
KINDS = {
    "batch-rich-kept": (False, True, True),
    "batch-rich-twice": (False, True, False),
    "batch-lazy-kept": (False, False, True),
    "population-rich": (True, True, False),
}


def all_kernels() -> dict[str, Kernel]:
    """Kernels by 'name precision source threads'."""
    kernels = {}
    for dtype in ("float32", "float64"):
        for stored in (True, False):
            source = "stored" if stored else "made"
            for threads in (32, 256):
                literal = literal_kernels(dtype, threads, stored)
                for field in dataclasses.fields(literal):
                    kernels[f"{field.name} {dtype} {source} {threads}"] = getattr(literal, field.name)
            for threads in (32, WIDEST[dtype]):
                kernels[f"descend {dtype} {source} {threads}"] = descend_kernel(dtype, threads, stored)
        for threads in (32, 256):
            for name, kind in KINDS.items():
                kernels[f"advance {dtype} {name} {threads}"] = reduced_kernel(dtype, threads, *kind)
        kernels[f"reset {dtype} - 256"] = reset_kernel(dtype)
    return kernels


def assemble(text: str, target: str) -> tuple[int | None, int | None]:
    """Return registers of a thread and bytes spilled, as the assembler tells them."""
    if nvjitlink is None:
        return None, None
    linker = nvjitlink.create(2, [f"-arch={target}", "-verbose"])
    nvjitlink.add_data(linker, nvjitlink.InputType.PTX, text.encode(), len(text), "kernel")
    nvjitlink.complete(linker)
    buffer = bytearray(nvjitlink.get_info_log_size(linker))
    nvjitlink.get_info_log(linker, buffer)
    nvjitlink.destroy(linker)
    log = buffer.decode()
    spilled = sum(int(count) for count in re.findall(r"(\d+) bytes spill", log))
    return int(re.search(r"Used (\d+) registers", log)[1]), spilled


def facts(kernel: Kernel, capability: tuple[int, int]) -> dict[str, Any]:
    text = kernel.ptx(capability)
    target = re.search(r"\.target (\w+)", text)[1]
    registers, spilled = assemble(text, target)
    lines = [line.split() for line in text.splitlines()]
    lines = [words[1:] if words and words[0].startswith("@") else words for words in lines]
    operations = [words[0] for words in lines if words and re.match(r"[a-z]", words[0])]
    return {
        "target": target,
        "registers": registers,
        "spilled": spilled,
        "entries": text.count(".visible .entry"),
        "local": ".local" in text,
        "calls": sum(operation.startswith("call") for operation in operations),
        "atomics": sum(operation.startswith(("atom", "red")) for operation in operations),
        "double": sum(".f64" in operation for operation in operations),
        "float": sum(".f32" in operation and not operation.startswith(("cvt", "ld", "st")) for operation in operations),
        "vector loads": sum(operation in ("ld.global.v4.f32", "ld.global.v2.f64") for operation in operations),
        "wide products": sum(operation == "mul.wide.u32" for operation in operations),
        "shared bytes": sum(int(count) for count in re.findall(r"\.shared .*\[(\d+)\];", text)),
    }


def main(major: str, minor: str) -> None:
    capability = int(major), int(minor)

    class Device:
        compute_capability = capability

    # numba-cuda asks the driver for the architecture when kernels call device functions.
    numba.cuda.dispatcher.get_current_device = lambda: Device
    print(json.dumps({label: facts(kernel, capability) for label, kernel in all_kernels().items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
