"""Safetensors files byte by byte, read without the library that wrote them."""

import json
import struct


def raw_tensors(folder):
    """{name: (type, shape, bytes)} of all files of a folder."""
    result = {}
    for file in sorted(folder.glob("*.safetensors")):
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8:8 + length])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            result[name] = (entry["dtype"], tuple(entry["shape"]), data[8 + length + start:8 + length + end])
    return result
