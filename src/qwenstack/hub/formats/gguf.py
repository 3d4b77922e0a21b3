"""Whether a GGUF file's tensors lie where its header says, each in its own bytes and none beside.

The header itself, with its counts and lengths, is read by `engines.gguf`. The rules of the layout
are those of ggml's own reader: tensors in the order of the list, each from the end of the one
before it, rounded up to the alignment.
"""

from __future__ import annotations

from typing import BinaryIO, Final

from qwenstack.engines.gguf import GgufError, GgufLayout, GgufTensor, read_layout

_NAME_BYTES_MAX: Final = 63  # ggml's GGML_MAX_NAME is 64, with the closing NUL


def check(file: BinaryIO, file_bytes: int) -> GgufLayout:
    """Read the header and check the layout of the seekable `file` of `file_bytes`, at its start.

    Only the header and the padding at the end are read. Raises GgufError.
    """
    layout = read_layout(file, file_bytes)
    names: set[str] = set()
    end = 0
    for tensor in layout.tensors:
        if tensor.name in names:
            raise GgufError(f"the file is damaged: it holds the tensor {tensor.name[:80]!r} twice")
        names.add(tensor.name)
        end = _end(tensor, _aligned(end, layout.alignment))
    # A vocabulary holds no tensors and may end with its header, unpadded.
    if not layout.tensors:
        return layout
    data_bytes = file_bytes - layout.data_start
    if end > data_bytes:
        raise GgufError(
            f"the file is cut short: its tensors reach to byte {layout.data_start + end}, but it "
            f"ends at {file_bytes}. Upload it again"
        )
    if data_bytes > _aligned(end, layout.alignment):
        raise GgufError(f"the file is damaged: {data_bytes - end} bytes follow its last tensor")
    file.seek(layout.data_start + end)
    if any(file.read(data_bytes - end)):
        raise GgufError("the file is damaged: the padding after its last tensor is not zero")
    return layout


def _end(tensor: GgufTensor, expected: int) -> int:
    """Where the tensor's bytes end, if they begin where they should."""
    if len(tensor.name.encode()) > _NAME_BYTES_MAX:
        raise GgufError(f"the file is damaged: a tensor's name is over {_NAME_BYTES_MAX} bytes")
    if tensor.bytes is None:
        raise GgufError(
            f"tensor {tensor.name!r} has a type that is not known here ({tensor.type_name}); "
            "quantise with a type of ggml's list"
        )
    if not tensor.whole_blocks:
        raise GgufError(
            f"the file is damaged: the rows of tensor {tensor.name!r}, {list(tensor.shape)}, are "
            f"no whole blocks of {tensor.type_name}"
        )
    if tensor.offset != expected:
        what = "overlaps another" if tensor.offset < expected else "leaves a hole before it"
        raise GgufError(
            f"the file is damaged: tensor {tensor.name!r} begins at {tensor.offset} and {what}, "
            f"since the one before it ends at {expected}"
        )
    return tensor.offset + tensor.bytes


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
