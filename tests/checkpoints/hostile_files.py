"""Files made to harm whoever reads them: some run code in an ordinary unpickler, some ask for endless memory."""

from __future__ import annotations

import builtins
import copyreg
import importlib
import io
import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edm_writer
import numpy as np
import torch

TERABYTES = 10 * 2**40


class Call:
    """Pickles as a call of `function`; arguments and function may themselves be calls."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __call__(self) -> None:
        """Exist: pickle insists that what it will call is callable."""

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def network(**arguments: Any) -> edm_writer.PersistentModule:
    """Return a small honest network."""
    arrays = {"model.enc.8x8_conv.weight": np.ones((2, 3), np.float32), "model.out.bias": np.zeros(2, np.float32)}
    return edm_writer.network(arrays, {"img_resolution": 8, **arguments})


def file_of(value: Any, *, protocol: int = 4) -> bytes:
    """Return a file of an honest network, of which one attribute is `value`."""
    honest = network()
    honest.model.extra = value
    return edm_writer.dump({"ema": honest}, protocol=protocol)


def text(value: str) -> bytes:
    """Return the opcode for a text."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def executing(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Return files that create the file `marker` in an ordinary unpickler, each with the global it names first."""
    touch = f"touch {marker}"
    system = Call(Call(getattr, Call(importlib.import_module, "os"), "system"), touch)
    calls = {
        "system": Call(os.system, touch),
        "eval": Call(eval, f"open({str(marker)!r}, 'w').close()"),
        "exec": Call(exec, f"open({str(marker)!r}, 'w').close()"),
        "getattr": system,
        "touch": Call(Path.touch, Call(Path, str(marker))),
    }
    files = {
        f"an attribute that calls {name}, protocol {protocol}": (file_of(call, protocol=protocol), name)
        for name, call in calls.items()
        for protocol in (2, 3, 4, 5)
        if name != "touch" or protocol >= 4
    }
    by_name = b"\x80\x04" + text("os") + text("system") + b"\x93" + text(touch) + b"\x85R."
    more = {
        "the whole file calls os.system": pickle.dumps(Call(os.system, touch)),
        "os.system by protocol 0": pickle.dumps(Call(os.system, touch), protocol=0),
        "os.system by GLOBAL": b"\x80\x02cos\nsystem\n" + text(touch) + b"\x85R.",
        "os.system by STACK_GLOBAL": by_name,
        "os.system by INST": b"\x80\x02(" + text(touch) + b"ios\nsystem\n.",
        "os.system by OBJ": b"\x80\x02(cos\nsystem\n" + text(touch) + b"o.",
        "os.system by a dotted name": by_name.replace(text("os") + text("system"), text("torch") + text("os.system")),
        **_nested(pickle.dumps(Call(os.system, touch), protocol=2)),
    }
    return files | {name: (content, "system") for name, content in more.items()}


def _nested(call: bytes) -> dict[str, bytes]:
    """Return files with the pickle `call` in place of each of the five in a tensor storage."""
    files = {}
    for place in range(5):
        blob = b"".join([*blob_parts()[:place], call, *blob_parts()[place + 1 :]])
        files[f"nested in part {place + 1} of a tensor storage"] = with_buffer(tensor(blob))
    files["nested in a storage that no tensor uses"] = file_of(Call(torch.storage._load_from_bytes, call))
    return files


def blob_parts(*, type_name: str = "FloatStorage", count: int = 2, key: str = "7", keys: Any = None) -> list[bytes]:
    """Return the five pickles of a storage blob, the count, and the numbers (always two, float32)."""
    sizes = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    identity = b"\x80\x02(" + text("storage") + f"ctorch\n{type_name}\n".encode() + text(key) + text("cpu")
    identity += pickle.dumps(count, protocol=2)[2:-1] + b"NtQ."
    return [
        pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2),
        pickle.dumps(1001, protocol=2),
        pickle.dumps(sizes, protocol=2),
        identity,
        pickle.dumps([key] if keys is None else keys, protocol=2),
        struct.pack("<q", count),
        np.ones(2, np.float32).tobytes(),
    ]


def tensor(blob: bytes, *, offset: Any = 0, size: Any = (2,), stride: Any = (1,)) -> Call:
    """Return what pickles as a tensor with the storage `blob`."""
    storage = Call(torch.storage._load_from_bytes, blob)
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


def with_buffer(value: Any) -> bytes:
    """Return a file of an honest network with one more buffer."""
    honest = network()
    honest.model._buffers["more"] = value
    return edm_writer.dump({"ema": honest})


def ill_formed() -> dict[str, bytes]:
    """Return files that ask for what no saved network asks for, without doing harm in themselves."""
    module_dict = b"\x80\x02ctorch.nn.modules.container\nModuleDict\n)\x81"
    return {
        "builtins.open": file_of(Call(builtins.open, "/dev/null")),
        "importlib.import_module": file_of(Call(importlib.import_module, "json")),
        "copyreg._reconstructor": file_of(Call(copyreg._reconstructor, object, object, None)),
        "an extension code (EXT1)": b"\x80\x02\x82\x01.",
        "an extension code (EXT2)": b"\x80\x02\x83\x01\x00.",
        "an extension code (EXT4)": b"\x80\x02\x84\x01\x00\x00\x00.",
        "a persistent id": b"\x80\x02" + text("a") + b"Q.",
        "a persistent id of protocol 0": b"\x80\x02Pabc\n.",
        "a buffer out of band": b"\x80\x05\x97.",
        "a bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1) + b"a.",
        "the storage reader's globals": b"\x80\x04"
        + text("torch")
        + text("storage._load_from_bytes.__globals__")
        + b"\x93.",
        "a name inside an allowed name": b"\x80\x04" + text("collections") + text("OrderedDict.fromkeys") + b"\x93.",
        "state for a name": b"\x80\x02ccollections\nOrderedDict\n}b.",
        "state for a dict": b"\x80\x02ccollections\nOrderedDict\n)R}" + text("__setstate__") + b"Nsb.",
        "slots for a module": module_dict + b"N}" + text("forward") + b"Ns\x86b.",
        "a class for a module": module_dict + b"}" + text("__class__") + b"ccollections\nOrderedDict\nsb.",
        "state for a module twice": module_dict + b"}" + text("a") + b"Nsb}" + text("a") + b"Nsb.",
        "a call of a number": b"\x80\x02K\x01)R.",
        "a call with a list": b"\x80\x02ccollections\nOrderedDict\n]R.",
        "an OrderedDict made of arguments": b"\x80\x02ccollections\nOrderedDict\n]\x85R.",
        "an item set in a text": b"\x80\x02" + text("a") + b"K\x00K\x01s.",
        "an item appended to a dict": b"\x80\x02}K\x00a.",
        "an object it never defined": b"\x80\x02h\x07.",
        "a value from an empty stack": b"\x80\x02\x85.",
        "a value from below a mark": b"\x80\x02K\x01(\x85.",
        "an end without a mark": b"\x80\x02K\x01t.",
        "values left over": b"\x80\x02K\x01K\x02.",
        "a byte that is no opcode": b"\x80\x02\xff.",
        "protocol 6": b"\x80\x06N.",
        "a global's name without end": b"\x80\x02c" + b"a" * 5000,
        "a text that is not UTF-8": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
        "a name that is a number": b"\x80\x04K\x01" + text("a") + b"\x93.",
        "a number as the document": b"\x80\x02K\x01.",
        "the network is a number": pickle.dumps({"ema": 1}),
        "the network is a bare dict": pickle.dumps({"ema": {"_parameters": {}}}),
        "bytes after the end": edm_writer.dump({"ema": network()}) + b"more",
    }


def deceiving_tensors() -> dict[str, bytes]:
    """Return files whose tensors claim what is not in their storage."""
    claims = {
        "a storage of 10 TB": tensor(b"".join(blob_parts(count=TERABYTES // 4))),
        "a storage of 10 TB in its declaration only": tensor(
            b"".join([*blob_parts(count=TERABYTES // 4)[:5], *blob_parts()[5:]])
        ),
        "a storage of fewer than no numbers": tensor(b"".join(blob_parts(count=-2))),
        "a storage of more numbers than 64 bits count": tensor(
            b"".join([*blob_parts()[:3], *blob_parts(count=2**40)[3:]])
        ),
        "a storage of doubles with the bytes of floats": tensor(b"".join(blob_parts(type_name="DoubleStorage"))),
        "a storage of an unknown type": tensor(b"".join(blob_parts(type_name="ComplexFloatStorage"))),
        "a storage cut short": tensor(b"".join(blob_parts())[:-1]),
        "a storage with bytes added": tensor(b"".join(blob_parts()) + b"a"),
        "a storage with other keys": tensor(b"".join(blob_parts(keys=["8"]))),
        "a storage without a count": tensor(b"".join(blob_parts()[:5])),
        "a storage that is a zip": tensor(_zipped()),
        "a storage of empty bytes": tensor(b""),
        "a tensor beyond its storage": tensor(b"".join(blob_parts()), offset=1),
        "a tensor beside its storage": tensor(b"".join(blob_parts()), offset=3, size=(0,)),
        "a tensor of 10 TB with stride 0": tensor(b"".join(blob_parts()), size=(TERABYTES,), stride=(0,)),
        "a tensor of huge strides": tensor(b"".join(blob_parts()), stride=(2**62,)),
        "a number of endless stride": tensor(b"".join(blob_parts()), size=(1,), stride=(2**70,)),
        "an empty tensor of endless stride": tensor(b"".join(blob_parts()), size=(0,), stride=(2**70,)),
        "an empty tensor of endless size": tensor(b"".join(blob_parts()), size=(2**39, 2**39, 0), stride=(1, 1, 1)),
        "a tensor of negative strides": tensor(b"".join(blob_parts()), offset=1, stride=(-1,)),
        "a tensor of negative size": tensor(b"".join(blob_parts()), size=(-2,)),
        "a tensor at a negative place": tensor(b"".join(blob_parts()), offset=-1),
        "a tensor of sizes without strides": tensor(b"".join(blob_parts()), stride=()),
        "a tensor of fractional size": tensor(b"".join(blob_parts()), size=(2.0,)),
        "a tensor of many dimensions": tensor(b"".join(blob_parts()), size=(1,) * 5000, stride=(1,) * 5000),
        "a tensor without a storage": Call(torch._utils._rebuild_tensor_v2, b"", 0, (), (), False, OrderedDict()),
    }
    return {name: with_buffer(claim) for name, claim in claims.items()}


def _zipped() -> bytes:
    content = io.BytesIO()
    torch.save(torch.ones(2), content)
    return content.getvalue()


def bombs() -> dict[str, bytes]:
    """Return small files that unfold to more than any memory, or keep a reader busy for years."""
    laughs: list[Any] = ["ha"]
    for _ in range(60):
        laughs = [laughs, laughs]
    circle: list[Any] = []
    circle.append(circle)
    return {
        "a billion laughs in the arguments": edm_writer.dump({"ema": network(more=laughs)}),
        "a billion laughs as the network": edm_writer.dump({"ema": laughs}),
        "a billion laughs as a key": b"\x80\x02}" + _doubling_tuples() + b"Ns.",
        "a billion laughs in a set": b"\x80\x04\x8f(" + _doubling_tuples() + b"\x90.",
        "a billion laughs of modules": edm_writer.dump({"ema": _doubling_modules()}),
        "a circle in the arguments": edm_writer.dump({"ema": network(more=circle)}),
        "a circle of modules": edm_writer.dump({"ema": _circle_of_modules()}),
        "large numbers as keys that all hash alike": b"\x80\x02}(" + _alike_numbers(100_000) + b"u.",
        "lists nested 300,000 deep": b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",
        "tuples nested 300,000 deep": b"\x80\x02)" + b"\x85" * 300_000 + b".",
        "marks nested 300,000 deep": b"\x80\x02" + b"(" * 300_000 + b"t" * 300_000 + b".",
        "three million sets": b"\x80\x04" + b"\x8f" * 3_000_000 + b".",
        "three million memories": b"\x80\x04N" + b"\x94" * 3_000_000 + b".",
        "a text of 10 TB": b"\x80\x04\x8d" + struct.pack("<Q", TERABYTES) + b"abc.",
        "bytes of 10 TB": b"\x80\x04\x8e" + struct.pack("<Q", TERABYTES) + b"abc.",
        "bytes of 2**64 - 1": b"\x80\x04\x8e" + b"\xff" * 8 + b"abc.",
        "a frame of 10 TB": b"\x80\x04\x95" + struct.pack("<Q", TERABYTES) + b"N.",
        "a text decoded over and over": _decoded_over_and_over(),
        "a storage read over and over": _read_over_and_over(),
        "a set made over and over": _set_over_and_over(),
        "a tensor of endless shape over and over": _shape_over_and_over(),
        "absent members looked at over and over": edm_writer.dump({"ema": _many_absent_members()}),
        "a storage under a thousand names": edm_writer.dump({"ema": _shared_storage()}),
    }


def _doubling_tuples() -> bytes:
    """Return opcodes for a tuple that holds one tuple twice, which holds one tuple twice, and so on."""
    return b")" + b"".join(b"q%ch%c\x86" % (level, level) for level in range(60))


def _doubling_modules() -> edm_writer.PersistentModule:
    root = network()
    part = root.model
    for _ in range(50):
        twice = torch.nn.ModuleDict()
        twice._modules.update(a=part, b=part)
        part = twice
    root._modules["model"] = part
    return root


def _circle_of_modules() -> edm_writer.PersistentModule:
    root = network()
    circle = torch.nn.ModuleDict()
    circle._modules["again"] = circle
    root._modules["circle"] = circle
    return root


def _shared_storage() -> edm_writer.PersistentModule:
    root = network()
    shared = torch.zeros(250_000)
    root._buffers.update({f"buffer{index}": shared for index in range(1000)})
    return root


def _alike_numbers(count: int) -> bytes:
    """Return opcodes for keys and values; Python hashes a number by its remainder of 2**61 - 1, here always 0."""
    numbers = (index * (2**61 - 1) for index in range(2**10, 2**10 + count))
    return b"".join(pickle.dumps(number, protocol=2)[2:-1] + b"N" for number in numbers)


def _decoded_over_and_over() -> bytes:
    start = b"\x80\x02(c_codecs\nencode\nq\x00" + text("a" * 10**6) + b"q\x01" + text("latin1") + b"q\x02"
    return start + b"h\x00h\x01h\x02\x86R" * 50_000 + b"t."


def _set_over_and_over() -> bytes:
    keys = b"".join(b"M" + struct.pack("<H", number) for number in range(50_000))
    return b"\x80\x02(cbuiltins\nset\nq\x00](" + keys + b"eq\x01" + b"h\x00h\x01\x85R" * 50_000 + b"t."


def _shape_over_and_over() -> bytes:
    blob = b"".join(blob_parts())
    start = b"\x80\x03(ctorch._utils\n_rebuild_tensor_v2\nq\x00ctorch.storage\n_load_from_bytes\nB"
    start += struct.pack("<I", len(blob)) + blob + b"\x85Rq\x01(" + b"K\x01" * 100_000 + b"tq\x02"
    return start + b"(h\x00(h\x01K\x00h\x02h\x02\x89tR" * 50_000 + b"t."


def _many_absent_members() -> edm_writer.PersistentModule:
    root, part = network(), torch.nn.ModuleDict()
    part._buffers.update({str(number): None for number in range(20_000)})
    root._modules.update({f"part{number}": part for number in range(20_000)})
    return root


def _read_over_and_over() -> bytes:
    blob = b"".join(blob_parts())
    start = b"\x80\x03(ctorch.storage\n_load_from_bytes\nq\x00B" + struct.pack("<I", len(blob)) + blob + b"q\x01"
    return start + b"h\x00h\x01\x85R" * 50_000 + b"t."
