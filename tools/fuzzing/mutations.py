"""Damages inputs at random: bytes, trees of plain values, and protobufs.

Each function draws from the generator that it is given and from nothing else,
so that a case can be made again from its seed.
"""

import copy
import math
import random
from typing import Any

from google.protobuf.message import Message

# What breaks readers: the ends of number types, text that is hard to print or
# encode, other types, and values that nest.
_NUMBERS = (
  0, -1, 1, 2**31, 2**53, 2**53 + 1, 2**62, 2**63 - 1, 2**63, -(2**63), 10**30,
  10**400, 0.5, -0.0, 1e-300, 1e-100, 1e15, 1e20, 1e308, math.inf, -math.inf,
  math.nan,
)  # fmt: skip
_TEXTS = (
  "", " ", "*", "\ud800x", "\x1b[2J", "a\nb\tc\x00", "\u202e", "é", "x" * 300,
  "../x", "CPU", "9" * 400 + " GiB", "1e999 GiB", "-5",
)  # fmt: skip
_OTHERS = (None, True, False, [], {}, [[]], {"": {}}, [None, "", 0])
_DEPTHS = (10, 300, 5_000, 100_000)


def mutate_tree(tree: Any, draw: random.Random) -> Any:
  """Returns a copy of lists and dictionaries with one to three changes."""
  tree = copy.deepcopy(tree)
  for _ in range(draw.choice((1, 1, 1, 2, 3))):
    holders = list(_holders(tree))
    if not holders:
      return draw.choice(_OTHERS)
    holder, key = draw.choice(holders)
    if isinstance(holder[key], str) and draw.random() < 0.4:
      tree = _renamed(tree, holder[key], draw.choice(_TEXTS))
    else:
      _change(holder, key, draw, holders)
  return tree


def _renamed(tree: Any, old: str, new: str) -> Any:
  """Returns the tree with a text replaced everywhere, keys included."""
  if isinstance(tree, dict):
    return {
      new if key == old else key: _renamed(value, old, new)
      for key, value in tree.items()
    }
  if isinstance(tree, list):
    return [_renamed(x, old, new) for x in tree]
  return new if tree == old else tree


def _holders(tree: Any):
  """Yields every container with each key or index that it has."""
  keys = tree if isinstance(tree, dict) else range(len(tree))
  for key in list(keys):
    yield tree, key
    if isinstance(tree[key], dict | list):
      yield from _holders(tree[key])


def _change(holder, key, draw: random.Random, holders) -> None:
  kind = draw.randrange(8)
  if type(holder[key]) in (int, float) and draw.random() < 0.7:
    holder[key] = _near(holder[key], draw)
  elif kind == 0:
    del holder[key]
  elif kind == 1:
    other, other_key = draw.choice(holders)
    if other_key in other or isinstance(other, list):
      holder[key] = _detached(other, other_key, holder[key])
  elif kind == 2 and isinstance(holder, list):
    holder.insert(draw.randint(0, len(holder)), copy.deepcopy(holder[key]))
  elif kind == 2:
    holder[draw.choice((*_TEXTS, f"{key}s"))] = holder.pop(key)
  elif kind == 3:
    holder[key] = _nested(holder[key], draw.choice((2, 50, 150)), draw)
  elif kind == 4:
    holder[key] = draw.choice(_TEXTS)
  elif kind == 5:
    holder[key] = copy.deepcopy(draw.choice(_OTHERS))
  else:
    holder[key] = draw.choice(_NUMBERS)


def _near(number: float, draw: random.Random) -> float:
  """Returns a number of the same type that a reader may well accept."""
  if isinstance(number, int):
    return draw.choice((0, 1, number + 1, number * 10 ** draw.randint(1, 17)))
  return number * 10.0 ** draw.randint(-20, 20)


def _detached(other, other_key, default):
  """Returns a copy of what is elsewhere; an earlier change may have cut it."""
  try:
    return copy.deepcopy(other[other_key])
  except IndexError:
    return default


def _nested(value: Any, depth: int, draw: random.Random) -> Any:
  for _ in range(depth):
    value = [value] if draw.random() < 0.5 else {"x": value}
  return value


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
  """Returns the bytes with one to three changes that know no structure."""
  for _ in range(draw.randint(1, 3)):
    at = draw.randint(0, len(data))
    end = min(len(data), at + draw.choice((1, 2, 8, 64)))
    kind = draw.randrange(7)
    if kind == 0:
      data = data[:at]
    elif kind == 1 and data:
      flipped = bytearray(data)
      flipped[at % len(data)] ^= 1 << draw.randrange(8)
      data = bytes(flipped)
    elif kind == 2:
      data = data[:at] + data[end:]
    elif kind == 3:
      data = data[:at] + data[at:end] + data[at:]
    elif kind == 4:
      data = data[:at] + draw.randbytes(draw.choice((1, 4, 100))) + data[at:]
    elif kind == 5:
      opening = draw.choice((b"[", b'{"a":', b"{", b"x = ["))
      data = data[:at] + opening * draw.choice(_DEPTHS) + data[at:]
    else:
      text = draw.choice(_TEXTS).encode(errors="surrogatepass")
      data = data[:at] + text + data[end:]
  return data


def mutate_message(message: Message, draw: random.Random) -> None:
  """Makes one to three changes in a protobuf message."""
  for _ in range(draw.randint(1, 3)):
    places = list(_fields(message))
    if not places:
      return
    owner, field = draw.choice(places)
    if draw.random() < 0.15:
      owner.ClearField(field.name)
    elif field.is_repeated:
      _change_repeated(owner, field, draw)
    elif field.message_type is None:
      setattr(owner, field.name, _scalar(field, draw))
    else:
      owner.ClearField(field.name)


def _is_map(field) -> bool:
  kind = field.message_type
  return kind is not None and kind.GetOptions().map_entry


def _fields(message: Message):
  """Yields every message with each field that it has set."""
  for field, value in message.ListFields():
    yield message, field
    if field.message_type is None:
      continue
    if _is_map(field):
      in_order = (value[key] for key in sorted(value))
      nested = [x for x in in_order if isinstance(x, Message)]
    else:
      nested = value if field.is_repeated else [value]
    for x in nested:
      yield from _fields(x)


def _change_repeated(owner, field, draw: random.Random) -> None:
  values = getattr(owner, field.name)
  if _is_map(field):
    del values[draw.choice(sorted(values))]
    return
  index = draw.randrange(len(values))
  if draw.random() < 0.3:
    del values[index]
  elif field.message_type is not None:
    values.add().CopyFrom(values[index])
  elif draw.random() < 0.5:
    values.append(values[index])
  else:
    values[index] = _scalar(field, draw)


def _scalar(field, draw: random.Random) -> Any:
  """Returns a value that the field can hold and its reader may not expect."""
  if field.cpp_type == field.CPPTYPE_STRING:
    if field.type == field.TYPE_BYTES:
      return draw.choice((b"", b"\xff\xfe", draw.randbytes(20), b"x" * 300))
    names = ("^x", "x:7", "MatMul", "x/y", "loc:@gone", "/device:CPU:9")
    return draw.choice((*(x for x in _TEXTS if x.isascii()), "é", *names))
  if field.cpp_type == field.CPPTYPE_BOOL:
    return draw.random() < 0.5
  if field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
    return draw.choice([x for x in _NUMBERS if isinstance(x, float)])
  if field.cpp_type == field.CPPTYPE_ENUM:
    return draw.choice([x.number for x in field.enum_type.values])
  bits = 31 if "32" in _CPP_NAMES[field.cpp_type] else 63
  low = 0 if "uint" in _CPP_NAMES[field.cpp_type] else -(2**bits)
  extremes = (0, 1, 2, -1, 2**20, 2**31 - 1, 2**53 + 1, 2**62, 2**bits - 1, low)
  return draw.choice([x for x in extremes if low <= x < 2**bits])


_CPP_NAMES = {1: "int32", 2: "int64", 3: "uint32", 4: "uint64"}
