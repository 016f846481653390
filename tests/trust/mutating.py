"""Mutations of valid inputs: bytes, JSON, safetensors and lists of arguments, from a seed."""

import json
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

NUMBERS: list[Any] = [
    0, -1, 1, 2, 3, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**12,
    10**30, -(2**63), -(2**63) - 1, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"),
]  # fmt: skip
TEXTS = [
    "", "..", "../x", "/etc/passwd", "/tmp/x", "a/../../b", "os:system", "os.system", "x" * 5000,
    "\0", "\ud800", "é", "٣", "nan", "inf", "-1", "0", "1e999", "None", "{{7*7}}", "%n", "0.", ".",
    "__class__", "__init__", "weight", "*", "[", "]", "9" * 400,
]  # fmt: skip
OTHERS: list[Any] = [None, True, False, [], {}, [1], {"a": 1}, [[[]]]]
_TOKENS = [
    *(str(n).encode() for n in NUMBERS), *(t.encode("utf-8", "surrogatepass") for t in TEXTS),
    b"\xff", b"\xfe\xff", b"<", b">", b"&", b"&a;", b"]]>", b"<!DOCTYPE a [<!ENTITY a 'b'>]>", b'"',
    b",", b"\n", b"\r", b"{", b"}", b"[", b"]", b":", b"\x80\x04.", b"PK\x03\x04", b"PAR1",
]  # fmt: skip


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """One to four changes: bits, numbers, cuts, repeats, moves, insertions."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        _change(found, random)
    return bytes(found)


def _change(found: bytearray, random: Random) -> None:
    at = random.randrange(len(found) + 1)
    length = random.choice((1, 2, 4, 8, 32, 200))
    part = bytes(found[at : at + length])
    match random.randrange(9):
        case 0 if found:
            found[at - 1] ^= 1 << random.randrange(8)
        case 1 if found:
            found[at - 1] = random.choice((0, 255, 127, 128, random.randrange(256)))
        case 2:
            del found[at : at + length]
        case 3:
            del found[at:]
        case 4:
            found[at:at] = part * random.choice((1, 2, 50))
        case 5:
            found[at:at] = random.choice(_TOKENS)
        case 6:
            token = random.choice(_TOKENS)
            found[at : at + len(token)] = token
        case 7:
            _replace_number(found, random)
        case _:
            kind = random.choice("bhiqBHIQfd")
            packed = struct.pack(f"<{kind}", _fitting(kind, random))
            found[at : at + len(packed)] = packed


def _fitting(kind: str, random: Random) -> float:
    if kind in "fd":
        return random.choice((0.0, -1.0, float("nan"), float("inf"), 1e30))
    bits = 8 * struct.calcsize(f"<{kind}") - kind.islower()
    return random.choice((0, 1, 2**bits - 1, 2 ** (bits - 1), random.randrange(2**bits)))


def _replace_number(found: bytearray, random: Random) -> None:
    """A run of digits becomes another number."""
    starts = [
        i for i, c in enumerate(found) if 48 <= c < 58 and not (i and 48 <= found[i - 1] < 58)
    ]
    if not starts:
        return
    start = end = random.choice(starts)
    while end < len(found) and 48 <= found[end] < 58:
        end += 1
    found[start:end] = str(random.choice(NUMBERS)).encode()


def mutate_json(data: Any, random: Random) -> Any:
    """Another value, a missing or additional key, a repeated item, somewhere in a tree."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            places.append((node, key))
            if isinstance(value, dict | list):
                walk(value)

    copy = json.loads(json.dumps(data))
    if isinstance(copy, dict | list):
        walk(copy)
    if not places:
        return _value(data, random)
    node, key = random.choice(places)
    match random.randrange(6):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[random.choice(TEXTS)] = node.pop(key)
        case 2 if isinstance(node, dict):
            node[random.choice(TEXTS)] = _value(node[key], random)
        case 3:
            other, place = random.choice(places)
            node[key] = json.loads(json.dumps(other.get(place) if isinstance(other, dict) else 1))
        case _:
            node[key] = _value(node[key], random)
    return copy


def _value(value: Any, random: Random) -> Any:
    if isinstance(value, int | float) and random.random() < 0.5:
        return value + random.choice((-1, 1, 7)) if random.random() < 0.5 else value * 1000
    return random.choice(random.choice((NUMBERS, TEXTS, OTHERS)))


def as_json(change: Callable[[Any, Random], Any]) -> Callable[[bytes, Random], bytes]:
    """A mutation of parsed JSON as one of its bytes."""

    def changed(data: bytes, random: Random) -> bytes:
        text = json.dumps(change(json.loads(data), random))
        return text.encode("utf-8", "surrogatepass")

    return changed


def mutate_safetensors(data: bytes, random: Random) -> bytes:
    """The header as JSON, with a length that is right, or the bytes of the tensors."""
    size = int.from_bytes(data[:8], "little")
    head, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    if random.random() < 0.2:
        body = mutate_bytes(body, random)
    else:
        head = mutate_json(head, random)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def mutate_arguments(arguments: Sequence[str], random: Random) -> list[str]:
    """Arguments left out, repeated, swapped or with other values."""
    found = list(arguments)
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(len(found)) if found else 0
        match random.randrange(6):
            case 0 if found:
                del found[at]
            case 1:
                found.insert(at, random.choice(TEXTS))
            case 2 if found:
                found.insert(at, random.choice(found))
            case 3 if found:
                other = random.randrange(len(found))
                found[at], found[other] = found[other], found[at]
            case 4 if found:
                letters = list(found[at]) or [""]
                letters[random.randrange(len(letters))] = random.choice("-=:./\\ \0é0aZ%*[")
                found[at] = "".join(letters)
            case _ if found:
                found[at] = str(random.choice(random.choice((NUMBERS, TEXTS))))
    return found
