"""Ways to make a dump that harms its reader, and the words of the refusal of each."""

import os

import h5py
import numpy as np

SECRET = 8388427.5  # in no time of day


def refill(dump, make):
    """The dump with another correlation."""
    with h5py.File(dump, "r+") as file:
        del file["correlation"], file["plot"]
        make(file)


def external_link(file):
    secret = os.path.join(os.path.dirname(file.filename), "..", "secret.h5")
    with h5py.File(secret, "w") as other:
        other["x"] = np.full((6, 4), SECRET, np.float32)
    file["correlation"] = h5py.ExternalLink(secret, "/x")


def soft_link(file):
    file["correlation"] = h5py.SoftLink("/influence")


def loop(file):
    file["correlation"] = h5py.SoftLink("/correlation")


def external_storage(file):
    secret = os.path.join(os.path.dirname(file.filename), "..", "secret.bin")
    np.full((6, 4), SECRET, np.float32).tofile(secret)
    file.create_dataset("correlation", (6, 4), "f4", external=[(secret, 0, 96)])


def virtual(file):
    secret = os.path.join(os.path.dirname(file.filename), "..", "secret.h5")
    with h5py.File(secret, "w") as other:
        other["x"] = np.full((6, 4), SECRET, np.float32)
    layout = h5py.VirtualLayout((6, 4), "f4")
    layout[:] = h5py.VirtualSource(secret, "x", (6, 4))
    file.create_virtual_dataset("correlation", layout)


def huge_chunk(file):
    file.create_dataset("correlation", (20_000, 20_000), "f4", chunks=(20_000, 20_000), compression="gzip")


def fill_values(file):
    file.create_dataset("correlation", (1_000_000, 1_000_000), "f4", chunks=(256, 256), compression="gzip")


def many_axes(file):
    file.create_dataset("correlation", (2,) * 12, "f4")


def lzf(file):
    file.create_dataset("correlation", data=np.ones((6, 4), "f4"), chunks=(3, 4), compression="lzf")


def scale_offset(file):
    file.create_dataset("correlation", data=np.ones((6, 4), "f4"), chunks=(3, 4), scaleoffset=3)


HOSTILE = {
    external_link: "a link to elsewhere",
    soft_link: "a link to elsewhere",
    loop: "a link to elsewhere",
    external_storage: "lies in another file",
    virtual: "lies in another file",
    huge_chunk: "declares 1,600,000,000 bytes but stores 0",
    fill_values: "declares 4,000,000,000,000 bytes but stores 0",
    many_axes: "has 12 axes; 4 is the most",
    lzf: "stored with filter 32000",
    scale_offset: "stored with filter 6",
}
